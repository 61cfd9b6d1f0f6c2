/* The reads that hold nothing but tokens, of many streams at once, without Python.
 *
 * A stream's tokens are alike but for their text: once answer.py has learnt what is around the text and proved that the
 * text alone decides (its Template), a read of whole HTTP chunks like that is so many tokens and one instant. Here such
 * reads are counted and their instants kept; all other bytes go to Python, unchanged and in order, with the instants
 * kept until then. Whatever is not plainly right is Python's to judge, so records are the same with this and without.
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

enum { MANY = 256, READ_BYTES = 64 << 10 }; /* as in sockets.py, wire.py */
static const int64_t OFFSET_GOOD_FOR_NS = 10000000;

typedef struct {
    PyObject *ready; /* (events): something happened, and nothing was read */
    PyObject *spill; /* (instants, data, arrived_ns or -1, errno): not just tokens were read. NULL: it is not lent */
    PyObject *before_bytes, *after_bytes;
    const char *before, *after;
    size_t lead, tail;
    int64_t sent_ns, last_ns; /* of the request; of what came last */
    int64_t *instants;
    size_t count, room;
} Stream;

typedef struct {
    PyObject_HEAD
    int epoll;
    Stream **streams; /* by file descriptor */
    size_t room;
    int64_t wall_minus_monotonic_ns, good_until_ns;
    unsigned char buffer[READ_BYTES];
} Reader;

static int64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void look_at_clocks(Reader *self)
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

/* When what was read came in, as ArrivalClock has it; -1: the kernel does not say. */
static int64_t arrived_ns(Reader *self, struct msghdr *message, int64_t sent_ns, int64_t read_ns)
{
    struct cmsghdr *stamp = CMSG_FIRSTHDR(message);
    if (stamp == NULL || stamp->cmsg_level != SOL_SOCKET || stamp->cmsg_type != SO_TIMESTAMPNS)
        return -1;
    if (read_ns > self->good_until_ns) {
        look_at_clocks(self);
        self->good_until_ns = read_ns + OFFSET_GOOD_FOR_NS;
    }
    struct timespec t;
    memcpy(&t, CMSG_DATA(stamp), sizeof t);
    int64_t arrived = t.tv_sec * INT64_C(1000000000) + t.tv_nsec - self->wall_minus_monotonic_ns;
    return sent_ns <= arrived && arrived <= read_ns ? arrived : read_ns;
}

/* Bytes of the character at `p` in a JSON string, if it is surely valid: UTF-8, and escapes of one letter. Else 0. */
static size_t plain(const unsigned char *p, const unsigned char *end)
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
    bool nothing = (c == 0xed && p[1] > 0x9f) || (c == 0xf4 && p[1] > 0x8f); /* a surrogate; above U+10FFFF */
    return overlong || nothing ? 0 : size;
}

static int hex(unsigned char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Bytes of the HTTP chunk at `p`, if it is one token of the stream, its size in two or three digits. Else 0. */
static size_t token(const Stream *stream, const unsigned char *p, const unsigned char *end)
{
    size_t size = 0, digits = 0;
    while (digits < 4 && p + digits < end && hex(p[digits]) >= 0)
        size = size * 16 + (size_t)hex(p[digits++]);
    size_t whole = digits + 2 + size + 2;
    if (digits < 2 || digits > 3 || p[0] == '0' || (size_t)(end - p) < whole || size + 2 <= stream->lead + stream->tail)
        return 0;
    const unsigned char *data = p + digits + 2, *text = data + stream->lead, *after = p + whole - stream->tail;
    if (memcmp(p + digits, "\r\n", 2) != 0 || memcmp(data, stream->before, stream->lead) != 0
        || memcmp(after, stream->after, stream->tail) != 0)
        return 0;
    while (text < after) {
        size_t bytes = plain(text, after);
        if (bytes == 0)
            return 0;
        text += bytes;
    }
    return whole;
}

/* How many tokens `data` is; 0: it is anything else, too. */
static size_t tokens(const Stream *stream, const unsigned char *data, size_t size)
{
    size_t count = 0;
    for (const unsigned char *end = data + size; data < end; count++) {
        size_t bytes = token(stream, data, end);
        if (bytes == 0)
            return 0;
        data += bytes;
    }
    return count;
}

static int keep(Stream *stream, int64_t instant, size_t times)
{
    if (instant > stream->last_ns) /* the kernel's clock is not ours: ns of jitter */
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

static Stream *find(Reader *self, int fd)
{
    return fd >= 0 && (size_t)fd < self->room ? self->streams[fd] : NULL;
}

/* Leaves the reading to Python, and gives it the instants kept. */
static PyObject *leave(Stream *stream)
{
    Py_ssize_t bytes = (Py_ssize_t)(stream->count * sizeof(int64_t));
    PyObject *instants = PyBytes_FromStringAndSize((char *)stream->instants, bytes);
    if (instants == NULL)
        return NULL;
    stream->count = 0;
    Py_CLEAR(stream->spill);
    Py_CLEAR(stream->before_bytes);
    Py_CLEAR(stream->after_bytes);
    return instants;
}

static void drop(Stream *stream)
{
    if (stream == NULL)
        return;
    Py_CLEAR(stream->ready);
    Py_CLEAR(stream->spill);
    Py_CLEAR(stream->before_bytes);
    Py_CLEAR(stream->after_bytes);
    free(stream->instants);
    free(stream);
}

static int done(PyObject *result)
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
    if (arrived >= 0 && size < READ_BYTES) {
        size_t count = tokens(stream, self->buffer, (size_t)size);
        if (count)
            return keep(stream, arrived, count);
    }
    PyObject *spill = Py_NewRef(stream->spill), *instants = leave(stream);
    int failed = instants == NULL
        || done(PyObject_CallFunction(spill, "Oy#Li", instants, (char *)self->buffer, (Py_ssize_t)(size > 0 ? size : 0),
                                      (long long)arrived, err));
    Py_DECREF(spill);
    Py_XDECREF(instants);
    return failed ? -1 : 0;
}

static PyObject *serve(PyObject *object, PyObject *Py_UNUSED(none))
{
    Reader *self = (Reader *)object;
    struct epoll_event events[MANY];
    int many = epoll_wait(self->epoll, events, MANY, 0);
    if (many < 0 && errno != EINTR)
        return PyErr_SetFromErrno(PyExc_OSError);
    for (int i = 0; i < many; i++) {
        int fd = events[i].data.fd;
        Stream *stream = find(self, fd); /* one before it may have closed it */
        if (stream == NULL)
            continue;
        int failed;
        if (stream->spill && events[i].events == EPOLLIN) {
            failed = read_tokens(self, stream, fd);
        } else {
            PyObject *ready = Py_NewRef(stream->ready);
            failed = done(PyObject_CallFunction(ready, "I", (unsigned int)events[i].events));
            Py_DECREF(ready);
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
    PyObject *ready;
    if (!PyArg_ParseTuple(args, "iO", &fd, &ready))
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
    stream->ready = Py_NewRef(ready);
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

static PyObject *take_over(PyObject *object, PyObject *args)
{
    int fd;
    long long sent_ns, last_ns;
    PyObject *before, *after, *spill;
    if (!PyArg_ParseTuple(args, "iSSLLO", &fd, &before, &after, &sent_ns, &last_ns, &spill))
        return NULL;
    Stream *stream = find((Reader *)object, fd);
    if (stream == NULL || stream->spill)
        return PyErr_Format(PyExc_ValueError, "file descriptor %d is not watched, or lent already", fd);
    stream->before_bytes = Py_NewRef(before);
    stream->after_bytes = Py_NewRef(after);
    stream->spill = Py_NewRef(spill);
    stream->before = PyBytes_AsString(before);
    stream->after = PyBytes_AsString(after);
    stream->lead = (size_t)PyBytes_Size(before);
    stream->tail = (size_t)PyBytes_Size(after);
    stream->sent_ns = sent_ns;
    stream->last_ns = last_ns;
    Py_RETURN_NONE;
}

static PyObject *give_back(PyObject *object, PyObject *args)
{
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    Stream *stream = find((Reader *)object, fd);
    return stream ? leave(stream) : PyBytes_FromStringAndSize("", 0);
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

static PyMethodDef methods[] = {
    { "watch", watch, METH_VARARGS, "watch(fd, ready): from now on `ready(events)` is told of news." },
    { "forget", forget, METH_VARARGS, "forget(fd): before it is closed." },
    { "take_over", take_over, METH_VARARGS,
      "take_over(fd, before, after, sent_ns, last_ns, spill): reads tokens here, until something else comes: "
      "`spill(instants, data, arrived_ns, errno)`." },
    { "give_back", give_back, METH_VARARGS, "give_back(fd): the instants kept, as int64; Python reads again." },
    { "serve", serve, METH_NOARGS, "serve(): all that are ready, or many of them." },
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

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "loadgen.client._token_reader", .m_slots = module_slots
};

PyMODINIT_FUNC PyInit__token_reader(void)
{
    return PyModuleDef_Init(&module);
}
