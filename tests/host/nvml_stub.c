/* A libnvidia-ml.so.1 with two GPUs, for machines without one: the real binding is loaded and called.
 * NVML_STUB=driver: the driver is not loaded; lost: GPU 1 has fallen off the bus.
 * NVML_STUB_PID: a file with the pid of the process that holds memory on GPU 0, instead of 100. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Rates;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } Process;

static int is(const char *mode) { const char *now = getenv("NVML_STUB"); return now && !strcmp(now, mode); }

static unsigned int holder(void) {
    const char *name = getenv("NVML_STUB_PID");
    FILE *file = name ? fopen(name, "r") : NULL;
    unsigned int pid = 100;
    if (file) { if (fscanf(file, "%u", &pid) != 1) pid = 100; fclose(file); }
    return pid;
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return is("driver") ? 9 : 0; }
int nvmlInit_v2(void) { return is("driver") ? 9 : 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned int n) { strncpy(out, "999.1", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned int *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **h) {
    if (i == 1 && is("lost")) return 15;
    *h = (void *)(size_t)(i + 1);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *h, Memory *m) {
    m->total = 80ULL << 30; m->used = (size_t)h << 30; m->free = m->total - m->used;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *h, Rates *r) {
    if (h == (void *)2) return 3; /* not supported */
    r->gpu = 42; r->memory = 7;
    return 0;
}
int nvmlDeviceGetTemperature(void *h, int kind, unsigned int *t) { (void)h; (void)kind; *t = 55; return 0; }
int nvmlDeviceGetUUID(void *h, char *out, unsigned int n) {
    strncpy(out, h == (void *)1 ? "GPU-aaaa" : "GPU-bbbb", n);
    return 0;
}
int nvmlDeviceGetName(void *h, char *out, unsigned int n) { (void)h; strncpy(out, "Stub 80GB", n); return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned int *n, Process *list) {
    if (h == (void *)2) { *n = 0; return 0; }
    if (!list) { *n = 2; return 7; }
    *n = 2;
    list[0] = (Process){holder(), 5ULL << 30, 0, 0};
    list[1] = (Process){200, ~0ULL, 0, 0};
    return 0;
}
