/* Reads of nothing but tokens, of many streams at once, without Python.
 *
 * The rule by which an HTTP chunk is one token of a stream is stated in token_template.py, which learns the bytes
 * around the text and applies the same rule in Python; tests/support/token_chunks.py is a table that both must pass.
 * A read of whole chunks that are tokens is a number of tokens and one instant: it is counted here, and the instants
 * are kept, with the bytes if somebody wants the words. All other bytes go to Python, unchanged and in order, together with the instants kept until then.
 * Whatever is not plainly a token is left to Python to judge, so records are the same with this module and without it.
 *
 * Linux only: epoll(7), and the kernel's stamps of what comes in (socket(7), SO_TIMESTAMPNS).
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

enum { MAX_EVENTS = 256, READ_BYTES = 64 << 10 }; /* as in socket_poller.py, connection.py */
static const size_t MAX_KEPT_BYTES = 64 << 20; /* of one stream; more is left to Python */
static const int64_t OFFSET_VALID_NS = 10000000; /* as in kernel_timestamps.py */

typedef struct { /* what stands around the text of a token */
    const char *prefix, *suffix;
    size_t prefix_size, suffix_size;
} Template;

typedef struct {
    PyObject *on_events; /* (events): something happened, and nothing was read */
    PyObject *spill; /* (instants, data, arrived_ns or -1, errno): more than tokens was read. NULL: it is not lent */
    PyObject *prefix_bytes, *suffix_bytes; /* own what the template points to */
    Template template;
    int64_t sent_ns, last_ns; /* when the request was sent; when the last bytes arrived */
    int64_t *instants;
    size_t count, room; /* instants kept; instants that fit */
    bool keeps; /* the bytes of tokens too */
    unsigned char *bytes;
    size_t size, bytes_room;
} Stream;

typedef struct {
    PyObject_HEAD
    int epoll;
    Stream **streams; /* by file descriptor */
    size_t room;
    int64_t wall_minus_monotonic_ns, offset_valid_until_ns;
    unsigned char buffer[READ_BYTES];
} Reader;

static int64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* As clock.anchor: the tightest of five readings of both clocks. */
static void measure_offset(Reader *self)
{
    int64_t tightest = INT64_MAX;
    for (int i = 0; i < 5; i++) {
        int64_t before = now_ns(CLOCK_MONOTONIC), wall = now_ns(CLOCK_REALTIME), after = now_ns(CLOCK_MONOTONIC);
        if (after - before < tightest) {
            tightest = after - before;
            self->wall_minus_monotonic_ns = wall - before - tightest / 2;
        }
    }
}

/* Returns when the bytes arrived that were read, as ArrivalClock does; -1 if the kernel gave no stamp. */
static int64_t arrived_ns(Reader *self, struct msghdr *message, int64_t sent_ns, int64_t read_ns)
{
    struct cmsghdr *stamp = CMSG_FIRSTHDR(message);
    if (stamp == NULL || stamp->cmsg_level != SOL_SOCKET || stamp->cmsg_type != SO_TIMESTAMPNS)
        return -1;
    if (read_ns > self->offset_valid_until_ns) {
        measure_offset(self);
        self->offset_valid_until_ns = read_ns + OFFSET_VALID_NS;
    }
    struct timespec t;
    memcpy(&t, CMSG_DATA(stamp), sizeof t);
    int64_t arrived = t.tv_sec * INT64_C(1000000000) + t.tv_nsec - self->wall_minus_monotonic_ns;
    return sent_ns <= arrived && arrived <= read_ns ? arrived : read_ns;
}

/* Returns the bytes of the character or escape at `p` if it is plain text by the rule, or else 0. */
static size_t plain_text(const unsigned char *p, const unsigned char *end)
{
    unsigned char c = p[0];
    if (c >= 0x20 && c < 0x7f)
        return c == '"' ? 0 : c != '\\' ? 1 : end - p > 1 && p[1] && strchr("\"\\/bfnrt", p[1]) ? 2 : 0;
    size_t size = c >= 0xc2 && c <= 0xdf ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
    if (size == 0 || (size_t)(end - p) < size)
        return 0;
    for (size_t i = 1; i < size; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    bool overlong = (c == 0xe0 && p[1] < 0xa0) || (c == 0xf0 && p[1] < 0x90);
    bool unassignable = (c == 0xed && p[1] > 0x9f) || (c == 0xf4 && p[1] > 0x8f); /* a surrogate; above U+10FFFF */
    return overlong || unassignable ? 0 : size;
}

/* Returns the value of a lower-case hexadecimal digit, or else -1. */
static int hex(unsigned char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Returns the bytes of the HTTP chunk at `p` if it is one token of the template by the rule, or else 0. */
static size_t token_bytes(const Template *template, const unsigned char *p, const unsigned char *end)
{
    size_t size = 0, digits = 0;
    while (digits < 4 && p + digits < end && hex(p[digits]) >= 0)
        size = size * 16 + (size_t)hex(p[digits++]);
    size_t chunk = digits + 2 + size + 2;
    if (digits < 2 || digits > 3 || p[0] == '0' || (size_t)(end - p) < chunk
        || size + 2 <= template->prefix_size + template->suffix_size)
        return 0;
    const unsigned char *data = p + digits + 2, *text = data + template->prefix_size;
    const unsigned char *suffix = p + chunk - template->suffix_size;
    if (memcmp(p + digits, "\r\n", 2) != 0 || memcmp(data, template->prefix, template->prefix_size) != 0
        || memcmp(suffix, template->suffix, template->suffix_size) != 0)
        return 0;
    while (text < suffix) {
        size_t bytes = plain_text(text, suffix);
        if (bytes == 0)
            return 0;
        text += bytes;
    }
    return chunk;
}

/* Counts the tokens at the beginning of `data`, and sets `*stop` to where the first other chunk begins. */
static size_t count_tokens(const Template *template, const unsigned char *data, const unsigned char *end,
                           const unsigned char **stop)
{
    size_t count = 0, bytes;
    for (*stop = data; *stop < end && (bytes = token_bytes(template, *stop, end)); count++)
        *stop += bytes;
    return count;
}

/* Keeps an instant `times` times; -1 and a Python error if there is no memory. */
static int keep(Stream *stream, int64_t instant, size_t times)
{
    if (instant > stream->last_ns) /* the offset of the kernel's clock is known to some ns */
        stream->last_ns = instant;
    if (stream->count + times > stream->room) {
        size_t room = 2 * stream->room + times + 64;
        int64_t *more = realloc(stream->instants, room * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        stream->instants = more;
        stream->room = room;
    }
    while (times--)
        stream->instants[stream->count++] = stream->last_ns;
    return 0;
}

/* Keeps the bytes of tokens; -1 and a Python error if there is no memory. */
static int keep_bytes(Stream *stream, const unsigned char *data, size_t size)
{
    if (stream->size + size > stream->bytes_room) {
        size_t room = 2 * stream->bytes_room + size + 4096;
        unsigned char *more = realloc(stream->bytes, room);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        stream->bytes = more;
        stream->bytes_room = room;
    }
    memcpy(stream->bytes + stream->size, data, size);
    stream->size += size;
    return 0;
}

static Stream *find(Reader *self, int fd)
{
    return fd >= 0 && (size_t)fd < self->room ? self->streams[fd] : NULL;
}

/* Leaves the reading to Python, and returns the instants kept; NULL and a Python error if there is no memory. */
static PyObject *end_lending(Stream *stream)
{
    Py_ssize_t bytes = (Py_ssize_t)(stream->count * sizeof(int64_t));
    PyObject *instants = PyBytes_FromStringAndSize((char *)stream->instants, bytes);
    if (instants == NULL)
        return NULL;
    stream->count = 0;
    Py_CLEAR(stream->spill);
    Py_CLEAR(stream->prefix_bytes);
    Py_CLEAR(stream->suffix_bytes);
    return instants;
}

static void drop(Stream *stream)
{
    if (stream == NULL)
        return;
    Py_CLEAR(stream->on_events);
    Py_CLEAR(stream->spill);
    Py_CLEAR(stream->prefix_bytes);
    Py_CLEAR(stream->suffix_bytes);
    free(stream->instants);
    free(stream->bytes);
    free(stream);
}

/* Drops the result of a call; -1 if it raised. */
static int discard(PyObject *result)
{
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int read_tokens(Reader *self, Stream *stream, int fd)
{
    _Alignas(struct cmsghdr) char stamps[CMSG_SPACE(sizeof(struct timespec))];
    struct iovec into = { self->buffer, READ_BYTES };
    struct msghdr message = {
        .msg_iov = &into, .msg_iovlen = 1, .msg_control = stamps, .msg_controllen = sizeof stamps
    };
    ssize_t size;
    do
        size = recvmsg(fd, &message, MSG_DONTWAIT);
    while (size < 0 && errno == EINTR);
    int err = size < 0 ? errno : 0;
    if (err == EAGAIN || err == EWOULDBLOCK)
        return 0;
    int64_t arrived = size > 0 ? arrived_ns(self, &message, stream->sent_ns, now_ns(CLOCK_MONOTONIC)) : -1;
    bool fits = !stream->keeps || stream->size + (size_t)(size > 0 ? size : 0) <= MAX_KEPT_BYTES;
    if (arrived >= 0 && size < READ_BYTES && fits) {
        const unsigned char *end = self->buffer + size, *stop;
        size_t count = count_tokens(&stream->template, self->buffer, end, &stop);
        if (stop == end && stream->keeps && keep_bytes(stream, self->buffer, (size_t)size) < 0)
            return -1;
        if (stop == end)
            return keep(stream, arrived, count);
    }
    PyObject *spill = Py_NewRef(stream->spill), *instants = end_lending(stream);
    int failed = instants == NULL
        || discard(PyObject_CallFunction(spill, "Oy#Li", instants, (char *)self->buffer,
                                         (Py_ssize_t)(size > 0 ? size : 0), (long long)arrived, err));
    Py_DECREF(spill);
    Py_XDECREF(instants);
    return failed ? -1 : 0;
}

static PyObject *serve(PyObject *object, PyObject *Py_UNUSED(none))
{
    Reader *self = (Reader *)object;
    struct epoll_event events[MAX_EVENTS];
    int ready = epoll_wait(self->epoll, events, MAX_EVENTS, 0);
    if (ready < 0 && errno != EINTR)
        return PyErr_SetFromErrno(PyExc_OSError);
    for (int i = 0; i < ready; i++) {
        int fd = events[i].data.fd;
        Stream *stream = find(self, fd); /* an earlier callback may have closed it */
        if (stream == NULL)
            continue;
        int failed;
        if (stream->spill && events[i].events == EPOLLIN) {
            failed = read_tokens(self, stream, fd);
        } else {
            PyObject *on_events = Py_NewRef(stream->on_events);
            failed = discard(PyObject_CallFunction(on_events, "I", (unsigned int)events[i].events));
            Py_DECREF(on_events);
        }
        if (failed)
            return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *watch(PyObject *object, PyObject *args)
{
    Reader *self = (Reader *)object;
    int fd;
    PyObject *on_events;
    if (!PyArg_ParseTuple(args, "iO", &fd, &on_events))
        return NULL;
    if (fd < 0)
        return PyErr_Format(PyExc_ValueError, "file descriptor %d", fd);
    if ((size_t)fd >= self->room) {
        size_t room = 2 * (size_t)fd + 64;
        Stream **more = realloc(self->streams, room * sizeof *more);
        if (more == NULL)
            return PyErr_NoMemory();
        memset(more + self->room, 0, (room - self->room) * sizeof *more);
        self->streams = more;
        self->room = room;
    }
    Stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL)
        return PyErr_NoMemory();
    stream->on_events = Py_NewRef(on_events);
    Stream *old = self->streams[fd];
    self->streams[fd] = stream;
    drop(old);
    Py_RETURN_NONE;
}

static PyObject *forget(PyObject *object, PyObject *args)
{
    Reader *self = (Reader *)object;
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Stream *stream = find(self, fd);
    if (stream) {
        self->streams[fd] = NULL;
        drop(stream);
    }
    Py_RETURN_NONE;
}

static Template template_of(PyObject *prefix, PyObject *suffix)
{
    return (Template){ PyBytes_AsString(prefix), PyBytes_AsString(suffix), (size_t)PyBytes_Size(prefix),
                       (size_t)PyBytes_Size(suffix) };
}

static PyObject *take_over(PyObject *object, PyObject *args)
{
    int fd;
    long long sent_ns, last_ns;
    PyObject *prefix, *suffix, *spill;
    if (!PyArg_ParseTuple(args, "iSSLLO", &fd, &prefix, &suffix, &sent_ns, &last_ns, &spill))
        return NULL;
    Stream *stream = find((Reader *)object, fd);
    if (stream == NULL || stream->spill)
        return PyErr_Format(PyExc_ValueError, "file descriptor %d is not watched, or lent already", fd);
    stream->prefix_bytes = Py_NewRef(prefix);
    stream->suffix_bytes = Py_NewRef(suffix);
    stream->spill = Py_NewRef(spill);
    stream->template = template_of(prefix, suffix);
    stream->sent_ns = sent_ns;
    stream->last_ns = last_ns;
    stream->keeps = false;
    stream->size = 0;
    Py_RETURN_NONE;
}

static PyObject *keep_words(PyObject *object, PyObject *args)
{
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Stream *stream = find((Reader *)object, fd);
    if (stream == NULL || !stream->spill)
        return PyErr_Format(PyExc_ValueError, "file descriptor %d is not lent", fd);
    stream->keeps = true;
    Py_RETURN_NONE;
}

static PyObject *kept_words(PyObject *object, PyObject *args)
{
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Stream *stream = find((Reader *)object, fd);
    if (stream == NULL)
        return PyBytes_FromStringAndSize("", 0);
    PyObject *bytes = PyBytes_FromStringAndSize((char *)stream->bytes, (Py_ssize_t)stream->size);
    free(stream->bytes);
    stream->bytes = NULL;
    stream->size = stream->bytes_room = 0;
    return bytes;
}

static PyObject *give_back(PyObject *object, PyObject *args)
{
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Stream *stream = find((Reader *)object, fd);
    return stream ? end_lending(stream) : PyBytes_FromStringAndSize("", 0);
}

static int init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    return PyArg_ParseTuple(args, "i", &((Reader *)object)->epoll) ? 0 : -1;
}

static void dealloc(PyObject *object)
{
    Reader *self = (Reader *)object;
    for (size_t fd = 0; fd < self->room; fd++)
        drop(self->streams[fd]);
    free(self->streams);
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyObject *skip_tokens(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *data, *prefix, *suffix;
    Py_ssize_t start;
    if (!PyArg_ParseTuple(args, "SnSS", &data, &start, &prefix, &suffix))
        return NULL;
    const unsigned char *bytes = (unsigned char *)PyBytes_AsString(data), *stop;
    Py_ssize_t size = PyBytes_Size(data);
    if (start < 0 || start > size)
        return PyErr_Format(PyExc_ValueError, "start %zd of %zd bytes", start, size);
    Template template = template_of(prefix, suffix);
    size_t count = count_tokens(&template, bytes + start, bytes + size, &stop);
    return Py_BuildValue("nn", (Py_ssize_t)(stop - bytes), (Py_ssize_t)count);
}

static PyMethodDef methods[] = {
    { "watch", watch, METH_VARARGS,
      "watch(fd, on_events): call `on_events(events)` whenever something happens to the socket." },
    { "forget", forget, METH_VARARGS, "forget(fd): stop calling; before the socket is closed." },
    { "take_over", take_over, METH_VARARGS,
      "take_over(fd, prefix, suffix, sent_ns, last_ns, spill): read tokens, until something else arrives, and then call "
      "`spill(instants, data, arrived_ns, errno)`." },
    { "give_back", give_back, METH_VARARGS,
      "give_back(fd): return the instants kept, as int64, and leave reading to Python." },
    { "keep_words", keep_words, METH_VARARGS,
      "keep_words(fd): keep the bytes of the tokens too, of a socket that was taken over." },
    { "kept_words", kept_words, METH_VARARGS,
      "kept_words(fd): return the bytes of tokens that were kept since the socket was taken over, and free them." },
    { "serve", serve, METH_NOARGS, "serve(): serve the ready sockets, a limited number at a time." },
    { NULL, NULL, 0, NULL },
};

static PyType_Slot slots[] = {
    { Py_tp_doc, "Reader(epoll_fd): reads tokens of the sockets registered there." },
    { Py_tp_init, init },
    { Py_tp_dealloc, dealloc },
    { Py_tp_methods, methods },
    { 0, NULL },
};

static PyType_Spec spec = { "loadgen.client._token_reader.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, slots };

static int exec(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);
    int failed = type == NULL || PyModule_AddObjectRef(module, "Reader", type) < 0;
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = { { Py_mod_exec, exec }, { 0, NULL } };

static PyMethodDef functions[] = {
    { "skip_tokens", skip_tokens, METH_VARARGS,
      "skip_tokens(data, start, prefix, suffix): count the tokens at the beginning of `data[start:]`; return where the "
      "first other chunk begins, and the count." },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "loadgen.client._token_reader", .m_methods = functions,
    .m_slots = module_slots
};

PyMODINIT_FUNC PyInit__token_reader(void)
{
    return PyModuleDef_Init(&module);
}
