/* A streaming completions server whose timing is known: load generators are measured against it.
 *
 *     gcc -O2 -o timing_server timing_server.c && ./timing_server --ttft-ms 50 --itl-ms 20 --log timing.log
 *
 * One thread, epoll, HTTP/1.1 on 127.0.0.1, no dependencies. It writes every token on schedule, and logs when each request
 * arrived (the kernel's timestamp of its last segment) and when each token was handed to the kernel (the clock is read right
 * before send). All times are ns of CLOCK_MONOTONIC, so that a client on this machine can compare its own times.
 *
 * loadgen/run/timing_server.py is the same server in Python, for machines without a compiler: the same --port, --ttft-ms,
 * --itl-ms, --model, --log and --hash-bodies, the same first line of output, the same log.
 *
 * Serves GET /health, /v1/models, /version and POST /v1/chat/completions, /v1/completions. Of a body it reads max_tokens or
 * max_completion_tokens, stream and include_usage. A stream has the form of vLLM's: headers at once; a role chunk with the
 * first token; one event per token, the last with finish_reason "length"; usage if requested; [DONE].
 *
 *     --port N            0 (default) takes a free port, printed on standard output
 *     --ttft-ms X --itl-ms X    first token at arrival + TTFT, token i at i ITL after it: absolute, without drift
 *     --tokens-per-event K      K words in each event
 *     --burst             no pacing: as many events per send as the socket accepts
 *     --burst-write N     no pacing: N events per send, streams in turn
 *     --log FILE          one `struct record` per request in FILE, in the order in which requests ended, and the time of every
 *                         token, as int64, in FILE.writes: a record's are [first_write, first_write + events)
 *     --hash-bodies       also write the SHA-256 of every record's body, 32 bytes, in FILE.sha256
 *     --model NAME --seed N --stall-ms X --split-us X
 *     --spare PREFIX      no faults for requests whose x-request-id begins with PREFIX, such as a client's probes
 *     --fault NAME=P      repeatable: a request gets the fault NAME with probability P. The same seed and order of arrival give
 *                         the same faults. A request can also name faults: header `x-fault: NAME,NAME` or `?fault=NAME`
 *
 * Faults: close, reset (FIN, RST in or after a random event), stall (once, for --stall-ms), 500, 503, 429, badjson (the JSON of
 * one event is cut), crlf, nospace (`data:{`), comment, split (each event in two sends, --split-us apart), nousage, nodone,
 * errchunk (an error event, then [DONE]), emptydelta (the first content is empty), donealone ([DONE] and nothing else),
 * doneearly ([DONE] after some events), abort (finish_reason "abort" after some events), choiceerr (an error inside a choice),
 * eventerr (`event: error` with a comment, then [DONE]), empty (finish_reason "content_filter" and no token), open (the body
 * does not end after [DONE]), parts (content is a list), surrogate (each text ends in half of a surrogate pair), zerousage
 * (usage counts zeros), textless (the second half of the tokens has no text). Of faults that end a stream the first in this
 * order acts: donealone, empty, errchunk, choiceerr, eventerr, abort, doneearly, close, reset.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { CLOSE, RESET, STALL, HTTP_500, HTTP_503, HTTP_429, BADJSON, CRLF, NOSPACE, COMMENT, SPLIT, NOUSAGE, NODONE, ERRCHUNK,
       EMPTYDELTA, DONEALONE, DONEEARLY, ABORT, CHOICEERR, EVENTERR, EMPTY, OPEN, PARTS, SURROGATE, ZEROUSAGE, TEXTLESS, FAULTS };
static const char *const FAULT_NAMES[FAULTS] = { "close", "reset", "stall", "500", "503", "429", "badjson", "crlf", "nospace",
                                                 "comment", "split", "nousage", "nodone", "errchunk", "emptydelta",
                                                 "donealone", "doneearly", "abort", "choiceerr", "eventerr", "empty", "open",
                                                 "parts", "surrogate", "zerousage", "textless" };
enum { CHAT = 1 << 26, STREAM = 1 << 27, USAGE = 1 << 28, CLIENT_LEFT = 1 << 29, SOCKET_FULL = 1 << 30 };

struct record {
    uint64_t seq;           /* order of arrival */
    int64_t arrived_ns;     /* the kernel received the request's last segment */
    int64_t read_ns;        /* the server read the request */
    int64_t due_ns;         /* due time of the first token; 0 in a burst */
    int64_t late_max_ns;    /* written - due, largest of the tokens */
    int64_t ended_ns;       /* terminator written, or connection closed */
    uint64_t first_write;   /* index of the first token's time in FILE.writes */
    uint32_t events;        /* token events written */
    uint32_t tokens;        /* words in these events */
    uint32_t asked;         /* max_tokens */
    uint32_t flags;         /* bit i: fault i; 26 chat, 27 stream, 28 usage requested, 29 the client disconnected early, 30 the
                               socket was full once: later times are then of buffering, not of sending */
    uint32_t status;
    uint32_t connection;    /* number of the connection, in order of acceptance */
    char request_id[64];    /* the x-request-id header */
};
_Static_assert(sizeof(struct record) == 144, "timing_server.py reads this");

struct connection {
    int fd;
    uint32_t number;
    char *in, *out;
    size_t in_length, in_capacity, out_at, out_length, out_capacity;
    bool busy, closing, dead;       /* a response is in progress; close after it; the peer disconnected */
    bool headers_sent, half_sent;   /* half_sent: the second half of a split event is in `out` and waits until due */
    int slot;                       /* position in the heap of deadlines; -1 outside */
    int64_t wake_ns, due_ns;        /* next deadline in the heap; due time of the next token */
    bool queued;                    /* in the ring of bursts or in the list to be freed */
    struct connection *next;
    uint64_t random;
    uint32_t plan_events, fault_at, prompt_tokens;
    char prefix[320];
    size_t prefix_length;
    int64_t *writes;
    size_t writes_capacity;
    uint8_t sha256[32];             /* of the record's body */
    struct record record;
};

static struct { int port, tokens_per_event, burst_write; bool burst, sha256; int64_t ttft_ns, itl_ns, stall_ns, split_ns; uint64_t seed;
                double fault[FAULTS]; const char *model, *log, *spare; } options = { .tokens_per_event = 1, .ttft_ns = 50000000,
                .itl_ns = 20000000, .stall_ns = 5000000000, .split_ns = 200000, .seed = 1, .model = "truth" };
static FILE *log_file, *writes_file, *sha256_file;
static uint64_t requests, writes_logged;
static uint32_t connections;
static int poller, listener;
static volatile sig_atomic_t stopping;

enum { SPIN_NS = 60000, SCRATCH = 1 << 20, BURST_BYTES = 1 << 18, EVENT_ROOM = 4096 };
static char scratch[SCRATCH];

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static uint64_t draw(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static double draw_unit(uint64_t *state) { return (draw(state) >> 11) * 0x1.0p-53; }

static bool has(const struct connection *c, int fault) { return c->record.flags >> fault & 1; }

static void *grown(void *memory, size_t bytes)
{
    void *bigger = realloc(memory, bytes);
    if (!bigger) { perror("timing_server"); exit(1); }
    return bigger;
}

/* ---- deadlines: a binary heap of connections by wake_ns ---- */

static struct connection **heap;
static int heap_size, heap_capacity;

static void heap_put(int slot, struct connection *c) { heap[slot] = c; c->slot = slot; }

static void heap_settle(int slot)
{
    struct connection *c = heap[slot];
    for (int up; slot && heap[up = (slot - 1) / 2]->wake_ns > c->wake_ns; slot = up) heap_put(slot, heap[up]);
    for (int down; (down = 2 * slot + 1) < heap_size; slot = down) {
        if (down + 1 < heap_size && heap[down + 1]->wake_ns < heap[down]->wake_ns) down++;
        if (heap[down]->wake_ns >= c->wake_ns) break;
        heap_put(slot, heap[down]);
    }
    heap_put(slot, c);
}

static void wake_at(struct connection *c, int64_t ns)
{
    c->wake_ns = ns;
    if (c->slot < 0) {
        if (heap_size == heap_capacity) heap = grown(heap, (heap_capacity = heap_capacity * 2 + 1024) * sizeof *heap);
        heap_put(heap_size++, c);
    }
    heap_settle(c->slot);
}

static void wake_never(struct connection *c)
{
    int slot = c->slot;
    if (slot < 0) return;
    c->slot = -1;
    struct connection *last = heap[--heap_size];
    if (last != c) { heap_put(slot, last); heap_settle(slot); }
}

/* ---- bursts: a ring of connections that take turns; connections to be freed once no epoll event can refer to them ---- */

static struct connection *ring_first, *ring_last, *graveyard;

static void ring_push(struct connection *c)
{
    if (c->queued) return;
    c->queued = true;
    c->next = NULL;
    if (ring_last) ring_last->next = c; else ring_first = c;
    ring_last = c;
}

static struct connection *ring_pop(void)
{
    struct connection *c = ring_first;
    ring_first = c->next;
    if (!ring_first) ring_last = NULL;
    c->queued = false;
    return c;
}

static void bury(struct connection *c) { c->queued = true; c->next = graveyard; graveyard = c; }

static void free_the_dead(void)
{
    while (graveyard) {
        struct connection *c = graveyard;
        graveyard = c->next;
        free(c->in); free(c->out); free(c->writes); free(c);
    }
}

/* ---- sending ---- */

static void watch(struct connection *c, uint32_t events)
{
    struct epoll_event e = { .events = events, .data.ptr = c };
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void keep(struct connection *c, const char *bytes, size_t length)
{
    if (c->out_at == c->out_length) c->out_at = c->out_length = 0;
    if (c->out_length + length > c->out_capacity) c->out = grown(c->out, c->out_capacity = 2 * (c->out_length + length));
    memcpy(c->out + c->out_length, bytes, length);
    c->out_length += length;
}

static bool waiting(const struct connection *c) { return c->out_at < c->out_length; }

static void flush(struct connection *c)
{
    while (waiting(c)) {
        ssize_t n = send(c->fd, c->out + c->out_at, c->out_length - c->out_at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) { c->dead = true; c->out_at = c->out_length; return; }
        if (n < 0) { c->record.flags |= SOCKET_FULL; watch(c, EPOLLIN | EPOLLRDHUP | EPOLLOUT); return; }
        c->out_at += n;
    }
}

static void put(struct connection *c, const char *bytes, size_t length)
{
    ssize_t n = waiting(c) ? 0 : send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (n == (ssize_t)length) return;
    if (n < 0 && errno != EAGAIN && errno != EINTR) { c->dead = true; return; }
    keep(c, bytes + (n > 0 ? n : 0), length - (n > 0 ? n : 0));
    flush(c);
}

/* ---- parts of a stream; each function appends at `o` and returns the new end ---- */

static const char *const WORDS[16] = { " the", " self", " return", " value", " name", " object", " list", " for", " in", " not",
                                       " is", " if", " def", " class", " None", " str" };

static char *text(char *o, const char *s)
{
    size_t n = strlen(s);
    memcpy(o, s, n + 1);
    return o + n;
}

static char *chunk_size(char *o, size_t n)
{
    char digits[16];
    int k = 0;
    do digits[k++] = "0123456789abcdef"[n & 15]; while (n >>= 4);
    while (k) *o++ = digits[--k];
    return text(o, "\r\n");
}

static const char *line_end(const struct connection *c) { return has(c, CRLF) ? "\r\n\r\n" : "\n\n"; }

static char *framed(char *o, const char *body, size_t length) /* one chunk of the chunked transfer coding */
{
    o = chunk_size(o, length);
    memcpy(o, body, length);
    return text(o + length, "\r\n");
}

static char *event(const struct connection *c, char *o, const char *json)
{
    char body[1024];
    int n = snprintf(body, sizeof body, "data:%s%s%s", has(c, NOSPACE) ? "" : " ", json, line_end(c));
    return framed(o, body, n);
}

static char *stream_headers(const struct connection *c, char *o)
{
    return o + sprintf(o, "HTTP/1.1 200 OK\r\ncache-control: no-cache\r\nx-request-id: %s\r\n"
                          "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n",
                       c->record.request_id);
}

static char *json_head(const struct connection *c, char *o, const char *kind)
{
    return o + sprintf(o, "{\"id\":\"%s-%016lx\",\"object\":\"%s\",\"created\":1790000000,\"model\":\"%s\",\"choices\":[",
                       c->record.flags & CHAT ? "chatcmpl" : "cmpl", (unsigned long)c->record.seq, kind, options.model);
}

static const char *chunk_kind(const struct connection *c)
{
    return c->record.flags & CHAT ? "chat.completion.chunk" : "text_completion";
}

/* The part of a token event before its words, made once per response. */
static void make_prefix(struct connection *c)
{
    char *o = text(c->prefix, has(c, NOSPACE) ? "data:" : "data: ");
    o = json_head(c, o, chunk_kind(c));
    o = text(o, !(c->record.flags & CHAT) ? "{\"index\":0,\"text\":\"" : has(c, PARTS)
             ? "{\"index\":0,\"delta\":{\"content\":[{\"type\":\"text\",\"text\":\"" : "{\"index\":0,\"delta\":{\"content\":\"");
    c->prefix_length = o - c->prefix;
}

static char *role_event(const struct connection *c, char *o)
{
    char json[512];
    text(json_head(c, json, chunk_kind(c)),
         "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}");
    return event(c, o, json);
}

static const char *after_words(const struct connection *c, bool last)
{
    if (c->record.flags & CHAT)
        return last ? "\"},\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}]}"
                    : "\"},\"logprobs\":null,\"finish_reason\":null}]}";
    return last ? "\",\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}]}"
                : "\",\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}]}";
}

static uint32_t words_in_event(const struct connection *c, uint32_t k)
{
    uint32_t left = c->record.asked - k * options.tokens_per_event, most = options.tokens_per_event;
    bool late = k && k >= c->plan_events / 2;
    return (k == 0 && has(c, EMPTYDELTA)) || (late && has(c, TEXTLESS)) ? 0 : left < most ? left : most;
}

static char *token_event(const struct connection *c, char *o, uint32_t k)
{
    if (has(c, BADJSON) && k == c->fault_at) {
        char cut[512];
        size_t n = c->prefix_length * 2 / 3;
        memcpy(cut, c->prefix, n);
        return framed(o, cut, text(cut + n, line_end(c)) - cut);
    }
    const char *suffix = after_words(c, k + 1 == c->plan_events), *end = line_end(c);
    const char *closing = has(c, PARTS) && c->record.flags & CHAT ? "\"}]" : "\""; /* the suffix begins with a quote */
    uint32_t words = words_in_event(c, k), word = (uint32_t)c->record.seq * 7 + k * 5;
    const char *half = has(c, SURROGATE) && words ? "\\ud83d" : "";
    size_t length = c->prefix_length + strlen(half) + strlen(closing) + strlen(suffix + 1) + strlen(end);
    for (uint32_t i = 0; i < words; i++) length += strlen(WORDS[(word + i) % 16]);
    o = chunk_size(o, length);
    memcpy(o, c->prefix, c->prefix_length);
    o += c->prefix_length;
    for (uint32_t i = 0; i < words; i++) o = text(o, WORDS[(word + i) % 16]);
    return text(text(text(text(text(o, half), closing), suffix + 1), end), "\r\n");
}

static int usage_json(const struct connection *c, char *o)
{
    uint32_t in = has(c, ZEROUSAGE) ? 0 : c->prompt_tokens, out = has(c, ZEROUSAGE) ? 0 : c->record.asked;
    return sprintf(o, "\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u}}", in, out, in + out);
}

static char *stream_tail(const struct connection *c, char *o)
{
    char json[1024];
    if (c->record.flags & USAGE && !has(c, NOUSAGE)) {
        usage_json(c, text(json_head(c, json, chunk_kind(c)), "],"));
        o = event(c, o, json);
    }
    if (!has(c, NODONE)) o = event(c, o, "[DONE]");
    return text(o, has(c, OPEN) && !has(c, NODONE) ? "" : "0\r\n\r\n"); /* with neither the answer would have no end */
}

static void put_json(struct connection *c, int status, const char *reason, const char *body)
{
    char answer[65536];
    int n = snprintf(answer, sizeof answer, "HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n%scontent-length: %zu\r\n\r\n%s",
                     status, reason, status == 503 || status == 429 ? "retry-after: 1\r\n" : "", strlen(body), body);
    put(c, answer, n);
}

/* ---- the life of a response ---- */

static void log_response(struct connection *c)
{
    if (!log_file) return;
    c->record.first_write = writes_logged;
    fwrite(&c->record, sizeof c->record, 1, log_file);
    if (sha256_file) fwrite(c->sha256, sizeof c->sha256, 1, sha256_file);
    if (c->record.events) fwrite(c->writes, sizeof *c->writes, c->record.events, writes_file);
    writes_logged += c->record.events;
}

static void end_response(struct connection *c)
{
    c->record.ended_ns = now_ns();
    log_response(c);
    c->busy = false;
    wake_never(c);
}

static void drop(struct connection *c, bool reset)
{
    if (c->fd < 0) return;
    if (c->busy) end_response(c);
    if (reset) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
    close(c->fd);
    c->fd = -1;
    if (!c->queued) bury(c); /* otherwise the ring buries it at its turn */
}

static void client_left(struct connection *c)
{
    if (c->busy) c->record.flags |= CLIENT_LEFT;
    drop(c, false);
}

static void stamp(struct connection *c)
{
    int64_t now = now_ns(), late = options.burst ? 0 : now - c->due_ns;
    if (late > c->record.late_max_ns) c->record.late_max_ns = late;
    if (c->record.events == c->writes_capacity)
        c->writes = grown(c->writes, (c->writes_capacity = c->writes_capacity * 2 + 256) * sizeof *c->writes);
    c->writes[c->record.events] = now;
}

static void count(struct connection *c)
{
    c->record.tokens += words_in_event(c, c->record.events);
    c->record.events++;
}

static bool faulty_now(const struct connection *c, int fault) { return has(c, fault) && c->record.events == c->fault_at; }

static void schedule_next(struct connection *c)
{
    int64_t stall_ns = faulty_now(c, STALL) ? options.stall_ns : 0;
    c->due_ns += options.itl_ns + stall_ns;
    if (!options.burst) wake_at(c, c->due_ns);
    else if (stall_ns) wake_at(c, now_ns() + stall_ns);
    else ring_push(c);
}

/* Appends what a fault other than a broken connection ends the stream with, [DONE] aside; NULL if there is none now. */
static char *failed_end(const struct connection *c, char *o)
{
    static const char error[] = "{\"message\":\"injected\",\"type\":\"InternalServerError\",\"param\":null,\"code\":500}";
    static const char named[] = "event: error\n: injected\n\n";
    char json[1024], finish[512];
    if (has(c, DONEALONE)) return o;
    if (!has(c, EMPTY) && c->record.events != c->fault_at) return NULL;
    if (has(c, EMPTY)) strcpy(finish, "\"content_filter\"");
    else if (has(c, ERRCHUNK)) { sprintf(json, "{\"error\":%s}", error); return event(c, o, json); }
    else if (has(c, CHOICEERR)) sprintf(finish, "\"error\",\"error\":%s", error);
    else if (has(c, EVENTERR)) return framed(o, named, strlen(named));
    else if (has(c, ABORT)) strcpy(finish, "\"abort\"");
    else return has(c, DONEEARLY) ? o : NULL;
    char *j = json_head(c, json, chunk_kind(c));
    j = text(j, c->record.flags & CHAT ? "{\"index\":0,\"delta\":{}" : "{\"index\":0,\"text\":\"\"");
    sprintf(j, ",\"finish_reason\":%s}]}", finish);
    return event(c, o, json);
}

static void break_off(struct connection *c, const char *token, const char *end)
{
    bool whole = draw(&c->random) & 1;
    stamp(c);
    put(c, scratch, (whole ? end : token + (end - token) / 2) - scratch);
    if (whole) count(c);
    drop(c, has(c, RESET));
}

/* The second half is sent at its deadline in the heap; only then is the next token's deadline set. */
static void put_in_halves(struct connection *c, size_t length)
{
    size_t cut = 1 + draw(&c->random) % (length - 1);
    put(c, scratch, cut);
    if (waiting(c)) { keep(c, scratch + cut, length - cut); return; }
    keep(c, scratch + cut, length - cut);
    c->half_sent = true;
}

static char *lead_in(struct connection *c, char *o)
{
    if (!c->headers_sent) { o = stream_headers(c, o); c->headers_sent = true; }
    if (c->record.flags & CHAT && c->record.events == 0) o = role_event(c, o);
    if (has(c, COMMENT) && c->record.events % 3 == 0) o = framed(o, ": ping\n\n", 8);
    return o;
}

static void write_token(struct connection *c)
{
    char *token = lead_in(c, scratch), *o;
    if ((o = failed_end(c, token))) {
        o = text(event(c, o, "[DONE]"), "0\r\n\r\n");
        put(c, scratch, o - scratch);
        end_response(c);
        return;
    }
    o = token_event(c, token, c->record.events);
    if (faulty_now(c, CLOSE) || faulty_now(c, RESET)) { break_off(c, token, o); return; }
    bool last = c->record.events + 1 == c->plan_events;
    if (last) o = stream_tail(c, o);
    stamp(c);
    if (has(c, SPLIT)) put_in_halves(c, o - scratch); else put(c, scratch, o - scratch);
    count(c);
    if (c->dead) client_left(c);
    else if (c->half_sent) wake_at(c, now_ns() + options.split_ns);
    else if (last) end_response(c);
    else schedule_next(c);
}

static void write_second_half(struct connection *c)
{
    c->half_sent = false;
    flush(c);
    if (c->dead) client_left(c);
    else if (c->record.events == c->plan_events) end_response(c);
    else schedule_next(c);
}

/* A burst without faults: one send of as many events as fit, all logged with one time. */
static void write_many(struct connection *c, uint32_t most)
{
    char *o = lead_in(c, scratch);
    for (uint32_t n = 0; n < most && c->record.events < c->plan_events && o - scratch < BURST_BYTES; n++) {
        o = token_event(c, o, c->record.events);
        stamp(c);
        count(c);
    }
    bool last = c->record.events == c->plan_events;
    if (last) o = stream_tail(c, o);
    put(c, scratch, o - scratch);
    if (c->dead) client_left(c);
    else if (last) end_response(c);
    else ring_push(c);
}

static void answer_whole(struct connection *c)
{
    static char body[SCRATCH];
    bool chat = c->record.flags & CHAT;
    char *o = text(json_head(c, body, chat ? "chat.completion" : "text_completion"),
                   chat ? "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"" : "{\"index\":0,\"text\":\"");
    for (uint32_t i = 0; i < c->record.asked && o - body < SCRATCH - EVENT_ROOM; i++) o = text(o, WORDS[i % 16]);
    o = text(o, chat ? "\"},\"finish_reason\":\"length\"}]," : "\",\"finish_reason\":\"length\"}],");
    usage_json(c, o);
    stamp(c);
    o = scratch + sprintf(scratch, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", strlen(body));
    o = text(o, body);
    c->record.events = 1;
    c->record.tokens = c->record.asked;
    put(c, scratch, o - scratch);
    end_response(c);
}

static void wake(struct connection *c)
{
    wake_never(c);
    if (c->half_sent) write_second_half(c);
    else if (c->record.flags & STREAM) write_token(c);
    else answer_whole(c);
}

static void take_turn(struct connection *c)
{
    if (c->fd < 0) { bury(c); return; }
    if (!c->busy || waiting(c) || c->half_sent) return;
    if (!(c->record.flags & STREAM)) answer_whole(c);
    else if (c->record.flags & ((1 << FAULTS) - 1)) write_token(c);
    else write_many(c, options.burst_write ? (uint32_t)options.burst_write : UINT32_MAX);
}

/* ---- SHA-256 (FIPS 180-4) ---- */

static uint32_t rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void add_block(uint32_t hash[8], const uint8_t *block)
{
    static const uint32_t K[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2 };
    uint32_t w[64], v[8]; /* v: the working variables a to h */
    for (int i = 0; i < 16; i++) {
        memcpy(&w[i], block + 4 * i, 4);
        w[i] = ntohl(w[i]);
    }
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + (rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3)
             + w[i - 7] + (rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, hash, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t one = v[7] + (rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25))
                     + ((v[4] & v[5]) ^ (~v[4] & v[6])) + K[i] + w[i];
        uint32_t two = (rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += one;
        v[0] = one + two;
    }
    for (int i = 0; i < 8; i++) hash[i] += v[i];
}

static void sha256(const char *data, size_t length, uint8_t digest[32])
{
    uint32_t hash[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
    uint8_t end[128] = { 0 };
    size_t whole = length / 64 * 64, rest = length - whole, padded = rest < 56 ? 64 : 128;
    for (size_t i = 0; i < whole; i += 64) add_block(hash, (const uint8_t *)data + i);
    memcpy(end, data + whole, rest);
    end[rest] = 0x80;
    for (int i = 0; i < 8; i++) end[padded - 1 - i] = (uint64_t)length * 8 >> 8 * i;
    for (size_t i = 0; i < padded; i += 64) add_block(hash, end + i);
    for (int i = 0; i < 8; i++) hash[i] = htonl(hash[i]);
    memcpy(digest, hash, sizeof hash);
}

/* ---- requests ---- */

static const char *header(const char *head, const char *end, const char *name, size_t *length)
{
    size_t n = strlen(name);
    for (const char *line = head; line < end; ) {
        const char *stop = memmem(line, end - line, "\r\n", 2);
        if (!stop) stop = end;
        if ((size_t)(stop - line) > n && line[n] == ':' && !strncasecmp(line, name, n)) {
            const char *value = line + n + 1;
            while (value < stop && *value == ' ') value++;
            *length = stop - value;
            return value;
        }
        line = stop + 2;
    }
    *length = 0;
    return NULL;
}

/* Return the bytes after `"name":` in a JSON body. Quotes inside strings are escaped, so a prompt cannot match a name. */
static const char *field(const char *body, size_t length, const char *name)
{
    char quoted[64];
    int n = sprintf(quoted, "\"%s\"", name);
    const char *end = body + length, *at = memmem(body, length, quoted, n);
    if (!at) return NULL;
    for (at += n; at < end && strchr(" \t\r\n:", *at); at++) { }
    return at < end ? at : NULL;
}

static bool is_true(const char *value) { return value && *value == 't'; }

static uint32_t asked_tokens(const char *body, size_t length)
{
    const char *value = field(body, length, "max_completion_tokens");
    if (!value || *value == 'n') value = field(body, length, "max_tokens");
    long tokens = value && *value != 'n' ? strtol(value, NULL, 10) : 16;
    return tokens > 0 ? tokens : 1;
}

static void add_faults(struct connection *c, const char *names, size_t length)
{
    for (size_t n; length; names += n, length -= n) {
        for (n = 0; n < length && names[n] != ','; n++) { }
        for (int i = 0; i < FAULTS; i++)
            if (strlen(FAULT_NAMES[i]) == n && !memcmp(names, FAULT_NAMES[i], n)) c->record.flags |= 1u << i;
        if (n < length) n++;
    }
}

static void choose_faults(struct connection *c, const char *target, size_t target_length, const char *head, const char *end)
{
    size_t length;
    const char *names = header(head, end, "x-fault", &length), *query = memmem(target, target_length, "?fault=", 7);
    bool spared = options.spare && !strncmp(c->record.request_id, options.spare, strlen(options.spare));
    for (int i = 0; i < FAULTS; i++)
        if (draw_unit(&c->random) < options.fault[i] && !spared) c->record.flags |= 1u << i;
    if (names) add_faults(c, names, length);
    if (query) add_faults(c, query + 7, target + target_length - query - 7);
    c->fault_at = draw(&c->random) % c->plan_events;
}

static void answer_error(struct connection *c, int status, const char *reason)
{
    c->record.status = status;
    put_json(c, status, reason, "{\"error\":{\"message\":\"injected\",\"type\":\"InternalServerError\",\"param\":null,\"code\":500}}");
    end_response(c);
}

static void start_response(struct connection *c)
{
    if (has(c, HTTP_500)) { answer_error(c, 500, "Internal Server Error"); return; }
    if (has(c, HTTP_503)) { answer_error(c, 503, "Service Unavailable"); return; }
    if (has(c, HTTP_429)) { answer_error(c, 429, "Too Many Requests"); return; }
    bool stream = c->record.flags & STREAM;
    make_prefix(c);
    if (options.burst) { ring_push(c); return; }
    if (stream) { put(c, scratch, stream_headers(c, scratch) - scratch); c->headers_sent = true; }
    c->due_ns = c->record.arrived_ns + options.ttft_ns + (stream ? 0 : (c->record.asked - 1) * options.itl_ns);
    if (faulty_now(c, STALL)) c->due_ns += options.stall_ns;
    c->record.due_ns = c->due_ns;
    wake_at(c, c->due_ns);
}

static void take_post(struct connection *c, const char *target, size_t target_length, const char *head, const char *body,
                      size_t body_length, int64_t arrived_ns, int64_t read_ns)
{
    size_t length;
    const char *id = header(head, body, "x-request-id", &length);
    bool chat = !strncmp(target, "/v1/chat/", 9);
    c->record = (struct record){ .seq = requests++, .arrived_ns = arrived_ns, .read_ns = read_ns, .status = 200,
        .connection = c->number, .asked = asked_tokens(body, body_length),
        .flags = (chat ? CHAT : 0) | (is_true(field(body, body_length, "stream")) ? STREAM : 0)
               | (is_true(field(body, body_length, "include_usage")) ? USAGE : 0) };
    if (id) memcpy(c->record.request_id, id, length < 63 ? length : 63);
    if (options.sha256) sha256(body, body_length, c->sha256);
    c->random = options.seed ^ (c->record.seq * 0x2545f4914f6cdd1dULL + 1);
    c->plan_events = c->record.flags & STREAM ? (c->record.asked - 1) / options.tokens_per_event + 1 : 1;
    c->prompt_tokens = body_length / 4; /* a cheap estimate */
    c->headers_sent = c->half_sent = false;
    c->busy = true;
    choose_faults(c, target, target_length, head, body);
    start_response(c);
}

static void take_get(struct connection *c, const char *target, size_t length)
{
    char models[512];
    sprintf(models, "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1790000000,\"owned_by\":\"truth\","
                    "\"root\":\"%s\",\"parent\":null,\"max_model_len\":131072}]}", options.model, options.model);
    if (length == 7 && !memcmp(target, "/health", 7)) put_json(c, 200, "OK", "{}");
    else if (length == 10 && !memcmp(target, "/v1/models", 10)) put_json(c, 200, "OK", models);
    else if (length == 8 && !memcmp(target, "/version", 8)) put_json(c, 200, "OK", "{\"version\":\"truth\"}");
    else put_json(c, 404, "Not Found", "{\"error\":{\"message\":\"not found\"}}");
}

/* Return true if a complete request was read. `arrived_ns` is 0 where the kernel's timestamp belongs to another request. */
static bool take_request(struct connection *c, int64_t arrived_ns, int64_t read_ns)
{
    const char *head_end = c->in_length ? memmem(c->in, c->in_length, "\r\n\r\n", 4) : NULL;
    if (!head_end) return false;
    size_t value_length, head_length = head_end + 4 - c->in;
    const char *value = header(c->in, head_end, "content-length", &value_length);
    size_t body_length = value ? strtoul(value, NULL, 10) : 0, total = head_length + body_length;
    if (c->in_length < total) return false;
    const char *target = memchr(c->in, ' ', head_length);
    const char *target_end = target ? memchr(target + 1, ' ', head_end - target - 1) : NULL;
    if (!target_end) { drop(c, false); return false; }
    size_t target_length = target_end - ++target;
    value = header(c->in, head_end, "connection", &value_length);
    c->closing = value && value_length == 5 && !strncasecmp(value, "close", 5);
    if (c->in[0] != 'P') take_get(c, target, target_length);
    else if (header(c->in, head_end, "transfer-encoding", &value_length)) put_json(c, 411, "Length Required", "{}");
    else if (!strncmp(target, "/v1/chat/completions", 20) || !strncmp(target, "/v1/completions", 15))
        take_post(c, target, target_length, c->in, c->in + head_length, body_length, arrived_ns ? arrived_ns : read_ns, read_ns);
    else put_json(c, 404, "Not Found", "{\"error\":{\"message\":\"not found\"}}");
    if (c->fd < 0) return false;
    memmove(c->in, c->in + total, c->in_length -= total);
    return true;
}

static void take_requests(struct connection *c, int64_t arrived_ns)
{
    while (c->fd >= 0 && !c->busy && take_request(c, arrived_ns, now_ns())) arrived_ns = 0;
}

/* Called after each step of a connection: take its next request, or end it. */
static void settle(struct connection *c)
{
    if (c->fd < 0 || c->busy) return;
    if (c->dead || (c->closing && !waiting(c))) drop(c, false);
    else take_requests(c, 0);
}

static int64_t kernel_stamp_ns(struct msghdr *message)
{
    for (struct cmsghdr *h = CMSG_FIRSTHDR(message); h; h = CMSG_NXTHDR(message, h))
        if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec t;
            memcpy(&t, CMSG_DATA(h), sizeof t);
            return t.tv_sec * 1000000000LL + t.tv_nsec - clock_ns(CLOCK_REALTIME) + now_ns();
        }
    return 0;
}

static void on_readable(struct connection *c)
{
    for (ssize_t n = 65536; n == 65536 && c->fd >= 0; ) {
        if (c->in_capacity - c->in_length < 65536) c->in = grown(c->in, c->in_capacity = c->in_capacity * 2 + 131072);
        char control[256];
        struct iovec piece = { c->in + c->in_length, 65536 };
        struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
        n = recvmsg(c->fd, &message, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n <= 0) { client_left(c); return; }
        c->in_length += n;
        take_requests(c, kernel_stamp_ns(&message));
    }
}

static void on_connections(void)
{
    for (int fd, one = 1; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0; ) {
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->number = connections++;
        c->slot = -1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event e = { .events = EPOLLIN | EPOLLRDHUP, .data.ptr = c };
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

static void on_event(struct connection *c, uint32_t events)
{
    if (c->fd < 0) return;
    if (events & EPOLLOUT) {
        flush(c);
        if (!waiting(c)) watch(c, EPOLLIN | EPOLLRDHUP);
        if (c->dead) { client_left(c); return; }
        if (options.burst && c->busy) ring_push(c);
    }
    if (events & ~EPOLLOUT) on_readable(c);
    settle(c);
}

/* ---- the loop ---- */

static int64_t idle_ns(void)
{
    if (ring_first) return 0;
    int64_t most = 100000000, left = heap_size ? heap[0]->wake_ns - now_ns() - SPIN_NS : most;
    return left < 0 ? 0 : left < most ? left : most;
}

static void serve(void)
{
    struct epoll_event events[256];
    while (!stopping) {
        for (int n = 0; n < 32 && heap_size && heap[0]->wake_ns <= now_ns(); n++) {
            struct connection *c = heap[0];
            wake(c);
            settle(c);
        }
        for (int n = 0; n < 32 && ring_first; n++) {
            struct connection *c = ring_pop();
            take_turn(c);
            settle(c);
        }
        int n = epoll_pwait2(poller, events, 256, &(struct timespec){ .tv_nsec = idle_ns() }, NULL);
        for (int i = 0; i < n; i++)
            if (events[i].data.ptr) on_event(events[i].data.ptr, events[i].events); else on_connections();
        free_the_dead();
    }
}

static void stop(int signal) { (void)signal; stopping = 1; }

static void listen_on_loopback(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    int one = 1;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one); /* accepted sockets inherit it before their first byte */
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 8192)) { perror("timing_server"); exit(1); }
    getsockname(listener, (void *)&address, &length);
    poller = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &(struct epoll_event){ .events = EPOLLIN });
    printf("timing server: http://127.0.0.1:%d/v1\n", ntohs(address.sin_port));
    fflush(stdout);
}

static FILE *open_log(const char *name, const char *suffix)
{
    char path[4096];
    snprintf(path, sizeof path, "%s%s", name, suffix);
    FILE *file = fopen(path, "wb");
    if (!file) { perror(path); exit(1); }
    setvbuf(file, NULL, _IOFBF, 1 << 16); /* small, so that flushing never takes long */
    return file;
}

static void set_fault(const char *argument)
{
    for (int i = 0; i < FAULTS; i++) {
        size_t n = strlen(FAULT_NAMES[i]);
        if (!strncmp(argument, FAULT_NAMES[i], n) && argument[n] == '=') { options.fault[i] = atof(argument + n + 1); return; }
    }
    fprintf(stderr, "timing_server: no fault like %s\n", argument);
    exit(2);
}

static void read_options(int argc, char **argv)
{
    enum { PORT = 256, TTFT, ITL, TOKENS, BURST, BURST_WRITE, LOG, MODEL, SEED, STALL_MS, SPLIT_US, FAULT, SPARE, BODIES };
    static const struct option names[] = {
        { "port", 1, 0, PORT }, { "ttft-ms", 1, 0, TTFT }, { "itl-ms", 1, 0, ITL }, { "tokens-per-event", 1, 0, TOKENS },
        { "burst", 0, 0, BURST }, { "burst-write", 1, 0, BURST_WRITE }, { "log", 1, 0, LOG }, { "model", 1, 0, MODEL },
        { "seed", 1, 0, SEED }, { "stall-ms", 1, 0, STALL_MS }, { "split-us", 1, 0, SPLIT_US }, { "fault", 1, 0, FAULT },
        { "spare", 1, 0, SPARE }, { "hash-bodies", 0, 0, BODIES }, { 0 } };
    for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1; ) switch (name) {
        case PORT: options.port = atoi(optarg); break;
        case TTFT: options.ttft_ns = atof(optarg) * 1e6; break;
        case ITL: options.itl_ns = atof(optarg) * 1e6; break;
        case TOKENS: options.tokens_per_event = atoi(optarg) > 1 ? atoi(optarg) : 1; break;
        case BURST_WRITE: options.burst_write = atoi(optarg); /* fall through */
        case BURST: options.burst = true; break;
        case LOG: options.log = optarg; break;
        case MODEL: options.model = strndup(optarg, 64); break;
        case SEED: options.seed = strtoull(optarg, NULL, 10); break;
        case STALL_MS: options.stall_ns = atof(optarg) * 1e6; break;
        case SPLIT_US: options.split_ns = atof(optarg) * 1e3; break;
        case FAULT: set_fault(optarg); break;
        case SPARE: options.spare = optarg; break;
        case BODIES: options.sha256 = true; break;
        default: fprintf(stderr, "the options are explained at the head of timing_server.c\n"); exit(2);
    }
}

int main(int argc, char **argv)
{
    struct rlimit files;
    read_options(argc, argv);
    if (options.log) { log_file = open_log(options.log, ""); writes_file = open_log(options.log, ".writes"); }
    if (options.log && options.sha256) sha256_file = open_log(options.log, ".sha256");
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    sigaction(SIGTERM, &(struct sigaction){ .sa_handler = stop }, NULL);
    sigaction(SIGINT, &(struct sigaction){ .sa_handler = stop }, NULL);
    listen_on_loopback();
    serve();
    if (log_file && (fclose(log_file) || fclose(writes_file) || (sha256_file && fclose(sha256_file)))) { perror(options.log); return 1; }
    return 0;
}
