/* A stand-in for libamd_smi.so: scripted GPUs, for tests that call the real amdsmi bindings.
 *
 * FAKE_AMDSMI is "UUID WATTS RESET_S STATUS" for each GPU, separated by ";": its counter goes up by WATTS from scripted
 * time 0, starts anew at RESET_S, and every read of it answers STATUS (0: success). The test adds a stub for every
 * other function of the library, since the bindings look all of them up.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 1, MAX_GPUS = 8 };
static const float RESOLUTION_UJ = 15.259f;

static struct { char uuid[38]; double watts, reset_s; int status; } gpus[MAX_GPUS];
static uint32_t n_gpus;
static double now_s;

void fake_amdsmi_set_time(double seconds) { now_s = seconds; }

int amdsmi_init(uint64_t flags) {
    char script[512];
    (void)flags;
    snprintf(script, sizeof script, "%s", getenv("FAKE_AMDSMI"));
    n_gpus = 0;
    for (char *one = strtok(script, ";"); one && n_gpus < MAX_GPUS; one = strtok(NULL, ";")) {
        if (sscanf(one, "%37s %lf %lf %d", gpus[n_gpus].uuid, &gpus[n_gpus].watts, &gpus[n_gpus].reset_s,
                   &gpus[n_gpus].status) != 4)
            return INVALID;
        n_gpus++;
    }
    return SUCCESS;
}
int amdsmi_shut_down(void) { return SUCCESS; }

int amdsmi_get_socket_handles(uint32_t *count, void **sockets) {
    if (sockets) sockets[0] = gpus;
    *count = n_gpus ? 1 : 0;
    return SUCCESS;
}
int amdsmi_get_processor_handles(void *socket, uint32_t *count, void **processors) {
    (void)socket;
    for (uint32_t i = 0; processors && i < n_gpus; i++) processors[i] = &gpus[i];
    *count = n_gpus;
    return SUCCESS;
}
static int index_of(void *processor) { return (int)(((char *)processor - (char *)gpus) / (long)sizeof gpus[0]); }

int amdsmi_get_gpu_device_uuid(void *processor, unsigned *length, char *uuid) {
    snprintf(uuid, *length, "%s", gpus[index_of(processor)].uuid);
    return SUCCESS;
}
int amdsmi_get_energy_count(void *processor, uint64_t *accumulator, float *resolution, uint64_t *timestamp) {
    int g = index_of(processor);
    double since = now_s >= gpus[g].reset_s ? gpus[g].reset_s : 0;
    if (gpus[g].status) return gpus[g].status;
    *accumulator = (uint64_t)(gpus[g].watts * (now_s - since) * 1e6 / RESOLUTION_UJ);
    *resolution = RESOLUTION_UJ;
    *timestamp = (uint64_t)(now_s * 1e9);
    return SUCCESS;
}
