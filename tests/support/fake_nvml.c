/* A stand-in for libnvidia-ml.so.1: scripted GPUs, for tests that call the real pynvml.
 *
 * FAKE_NVML_SCRIPT names a file of lines, one fact each; GPUs are numbered from 0, times are seconds:
 *   gpu UUID                              one more GPU
 *   point GPU T W                         power runs in straight lines through these; held before and after
 *   square GPU LOW HIGH PERIOD            instead: HIGH for the first half of each period, LOW for the second
 *   counter GPU PERIOD QUANTUM_MJ         the counter moves at multiples of PERIOD, in multiples of QUANTUM_MJ
 *   latency SECONDS                       what one counter read takes
 *   reset GPU T                           the counter starts from 0 at T
 *   jump GPU T MJ                         the counter is higher by MJ from T on
 *   limit GPU W                           the largest power limit that the card accepts, and the one in force
 *   capped GPU FROM TO MHZ                the power limit holds the clocks at MHZ from FROM to TO, and is counted
 *   freeze GPU T                          the counter does not move after T
 *   fault CALL GPU FROM TO CODE           CALL (init count uuid counter instant average usage mig clocks) answers CODE
 *   first CALL GPU N CODE                 its first N answers are CODE
 *   hang CALL GPU FROM                    CALL does not return any more
 *   mig GPU UUID                          MIG is on, and this is a slice
 *   clocks GPU FROM TO BITS               the clocks' event reasons are BITS from FROM to TO, else 0
 *   real                                  time is CLOCK_MONOTONIC from the first call, not fake_nvml_set_time
 * There is no call that changes a setting: one that is tried fails as FUNCTION_NOT_FOUND.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
enum { MAX_GPUS = 8, MAX_POINTS = 64, MAX_FAULTS = 32 };

struct gpu {
    char uuid[96], slice[96];
    double t[MAX_POINTS], w[MAX_POINTS];
    int points, mig;
    double low, high, square;
    double period, quantum_mj, reset, jump, jump_mj, limit, freeze, slow_from, slow_to, cap_from, cap_to;
    unsigned slow, cap_mhz;
};
struct fault { char call[16]; int gpu, code, left; double from, to; };

static struct gpu gpus[MAX_GPUS];
static struct fault faults[MAX_FAULTS];
static int n_gpus, n_faults, real_time;
static double latency;
static int64_t now_ns, zero_ns;
static pid_t owner;

int64_t fake_nvml_monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int64_t fake_nvml_time(void) { return real_time ? fake_nvml_monotonic_ns() - zero_ns : now_ns; }
void fake_nvml_set_time(int64_t ns) { now_ns = ns; }

static double now(void) { return fake_nvml_time() / 1e9; }

static double watts(const struct gpu *g, double t) {
    if (g->square > 0) return fmod(t, g->square) < g->square / 2 ? g->high : g->low;
    if (t < g->t[0]) return g->w[0];
    for (int i = 1; i < g->points; i++)
        if (t < g->t[i]) return g->w[i - 1] + (g->w[i] - g->w[i - 1]) * (t - g->t[i - 1]) / (g->t[i] - g->t[i - 1]);
    return g->w[g->points - 1];
}

/* Joules in [0, t], exactly: whole periods of the square wave, or the trapezoids under the lines. */
static double joules(const struct gpu *g, double t) {
    if (g->square > 0) {
        double whole = floor(t / g->square), rest = t - whole * g->square, half = g->square / 2;
        return whole * half * (g->low + g->high) + (rest < half ? rest * g->high : half * g->high + (rest - half) * g->low);
    }
    double sum = 0, at = 0;
    for (int i = 0; i < g->points; i++) {
        double end = fmin(t, g->t[i]);
        if (end <= at) continue;
        double start_w = i ? g->w[i - 1] + (g->w[i] - g->w[i - 1]) * (at - g->t[i - 1]) / (g->t[i] - g->t[i - 1]) : g->w[0];
        sum += (end - at) * (start_w + watts(g, end - 1e-12)) / 2;
        at = end;
    }
    return sum + fmax(t - at, 0) * g->w[g->points - 1];
}

static unsigned long long counter_mj(const struct gpu *g, double t) {
    double seen = floor(fmin(t, g->freeze) / g->period + 1e-9) * g->period;
    double j = t < g->reset ? 5000 + joules(g, seen) : fmax(joules(g, seen) - joules(g, g->reset), 0);
    double jumped = seen >= g->jump ? g->jump_mj : 0;
    return (unsigned long long)(floor(1000 * j / g->quantum_mj + 1e-6) * g->quantum_mj + jumped);
}

static int answer(const char *call, int gpu) {
    double t = now();
    for (int i = 0; i < n_faults; i++) {
        struct fault *f = &faults[i];
        if (strcmp(f->call, call) || (gpu >= 0 && f->gpu != gpu) || t < f->from || t >= f->to) continue;
        if (!f->left) continue;
        f->left--;
        while (f->code < 0) pause();
        return f->code;
    }
    return SUCCESS;
}

static void read_script(void) {
    char line[256], call[16];
    int g, code;
    double a, b, c;
    FILE *file = fopen(getenv("FAKE_NVML_SCRIPT"), "r");
    n_gpus = n_faults = 0;
    while (file && fgets(line, sizeof line, file)) {
        struct gpu *next = &gpus[n_gpus];
        if (sscanf(line, "gpu %95s", next->uuid) == 1) {
            char uuid[96];
            strcpy(uuid, next->uuid);
            *next = (struct gpu){.period = 0.1, .quantum_mj = 1, .reset = INFINITY, .jump = INFINITY, .freeze = INFINITY};
            strcpy(next->uuid, uuid);
            n_gpus++;
        } else if (sscanf(line, "point %d %lf %lf", &g, &a, &b) == 3) {
            gpus[g].t[gpus[g].points] = a;
            gpus[g].w[gpus[g].points++] = b;
        } else if (sscanf(line, "square %d %lf %lf %lf", &g, &a, &b, &c) == 4) {
            gpus[g].low = a, gpus[g].high = b, gpus[g].square = c;
        } else if (sscanf(line, "counter %d %lf %lf", &g, &a, &b) == 3) {
            gpus[g].period = a, gpus[g].quantum_mj = b;
        } else if (sscanf(line, "latency %lf", &a) == 1) {
            latency = a;
        } else if (sscanf(line, "reset %d %lf", &g, &a) == 2) {
            gpus[g].reset = a;
        } else if (sscanf(line, "jump %d %lf %lf", &g, &a, &b) == 3) {
            gpus[g].jump = a, gpus[g].jump_mj = b;
        } else if (sscanf(line, "limit %d %lf", &g, &a) == 2) {
            gpus[g].limit = a;
        } else if (sscanf(line, "freeze %d %lf", &g, &a) == 2) {
            gpus[g].freeze = a;
        } else if (sscanf(line, "fault %15s %d %lf %lf %d", call, &g, &a, &b, &code) == 5) {
            faults[n_faults] = (struct fault){.gpu = g, .code = code, .left = -1, .from = a, .to = b};
            strcpy(faults[n_faults++].call, call);
        } else if (sscanf(line, "first %15s %d %lf %d", call, &g, &a, &code) == 4) {
            faults[n_faults] = (struct fault){.gpu = g, .code = code, .left = (int)a, .to = INFINITY};
            strcpy(faults[n_faults++].call, call);
        } else if (sscanf(line, "hang %15s %d %lf", call, &g, &a) == 3) {
            faults[n_faults] = (struct fault){.gpu = g, .code = -1, .left = -1, .from = a, .to = INFINITY};
            strcpy(faults[n_faults++].call, call);
        } else if (sscanf(line, "mig %d %95s", &g, call) == 2) {
            sscanf(line, "mig %d %95s", &g, gpus[g].slice);
            gpus[g].mig = 1;
        } else if (sscanf(line, "clocks %d %lf %lf %d", &g, &a, &b, &code) == 4) {
            gpus[g].slow_from = a, gpus[g].slow_to = b, gpus[g].slow = (unsigned)code;
        } else if (sscanf(line, "capped %d %lf %lf %d", &g, &a, &b, &code) == 4) {
            gpus[g].cap_from = a, gpus[g].cap_to = b, gpus[g].cap_mhz = (unsigned)code;
        } else if (!strncmp(line, "real", 4)) {
            real_time = 1;
        } else if (line[0] != '\n') {
            fprintf(stderr, "fake_nvml: not understood: %s", line);
            abort();
        }
    }
    if (file) fclose(file);
    zero_ns = fake_nvml_monotonic_ns();
}

/* Handles: GPU i is &gpus[i]; its slice is &gpus[i].slice. A child of fork is not initialized. */
#define CHECK(call, device)                                          \
    struct gpu *g = device;                                          \
    if (owner != getpid()) return UNINITIALIZED;                     \
    if (g < gpus || g >= gpus + n_gpus) return INVALID_ARGUMENT;     \
    int code = answer(call, (int)(g - gpus));                        \
    if (code) return code

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!owner) read_script();
    int code = answer("init", -1);
    if (!code) owner = getpid();
    return code;
}
int nvmlShutdown(void) { return owner == getpid() ? SUCCESS : UNINITIALIZED; }
const char *nvmlErrorString(int code) { (void)code; return "scripted error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (owner != getpid()) return UNINITIALIZED;
    *count = n_gpus;
    return answer("count", -1);
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (owner != getpid()) return UNINITIALIZED;
    if ((int)index >= n_gpus) return INVALID_ARGUMENT;
    *device = &gpus[index];
    return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (owner != getpid()) return UNINITIALIZED;
    for (int i = 0; i < n_gpus; i++) {
        if (!strcmp(uuid, gpus[i].uuid)) { *device = &gpus[i]; return SUCCESS; }
        if (!strcmp(uuid, gpus[i].slice)) { *device = gpus[i].slice; return SUCCESS; }
    }
    return NOT_FOUND;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *slice, void **device) {
    for (int i = 0; i < n_gpus; i++)
        if (slice == gpus[i].slice) { *device = &gpus[i]; return SUCCESS; }
    return INVALID_ARGUMENT;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    CHECK("uuid", device);
    snprintf(uuid, length, "%s", g->uuid);
    return SUCCESS;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    (void)device;
    snprintf(name, length, "GPU of a script");
    return SUCCESS;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    CHECK("mig", device);
    *current = *pending = g->mig;
    return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    CHECK("counter", device);
    *mj = counter_mj(g, now());
    if (real_time && latency > 0) usleep((useconds_t)(latency * 1e6));
    now_ns += (int64_t)(latency * 1e9);
    return SUCCESS;
}
int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *least_mw, unsigned *largest_mw) {
    CHECK("limits", device);
    *least_mw = 0, *largest_mw = (unsigned)(1000 * g->limit);
    return SUCCESS;
}
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw) {
    CHECK("limit", device);
    if (g->limit <= 0) return NOT_SUPPORTED;
    *mw = (unsigned)(1000 * g->limit);
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *mhz) {
    CHECK("mhz", device);
    if (!g->cap_mhz || clock != 1) return NOT_SUPPORTED;
    *mhz = now() >= g->cap_from && now() < g->cap_to ? g->cap_mhz : 1980;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) {
    CHECK("usage", device);
    *mw = (unsigned)lround(1000 * watts(g, now()));
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits) {
    CHECK("clocks", device);
    *bits = now() >= g->slow_from && now() < g->slow_to ? g->slow : 0;
    return SUCCESS;
}

struct field { uint32_t id, scope; int64_t timestamp, latency_us; uint32_t type, code; union { double d; uint32_t ui; uint64_t ull; } value; };

int nvmlDeviceGetFieldValues(void *device, int count, struct field *fields) {
    CHECK("fields", device);
    for (int i = 0; i < count; i++) {
        const char *call = fields[i].id == 186 ? "instant" : fields[i].id == 185 ? "average" : NULL;
        fields[i].code = !call || fields[i].scope ? NOT_SUPPORTED : (uint32_t)answer(call, (int)(g - gpus));
        fields[i].type = 1;
        fields[i].value.ui = (uint32_t)lround(1000 * watts(g, now()));
        if (fields[i].id == 74 && g->cap_mhz) { /* nanoseconds, counted every 100 ms */
            double capped = fmax(fmin(floor(now() * 10 + 1e-9) / 10, g->cap_to) - g->cap_from, 0);
            fields[i].code = SUCCESS, fields[i].type = 3, fields[i].value.ull = (uint64_t)llround(1e9 * capped);
        }
    }
    return SUCCESS;
}
