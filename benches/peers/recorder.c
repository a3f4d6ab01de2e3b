// A driver without a device, and cuBLAS, cuDNN, cuRAND and NVRTC on it: memory has addresses and nothing
// behind them, kernels are not run, and what is read back is ones. Every call is a line of the file that
// PIRL_RECORD names. launches.py builds it, with a function that records its name for each that is not here.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *out;

void record(const char *what, const char *name, u64 number) {
    pthread_mutex_lock(&lock);
    if (!out) {
        const char *path = getenv("PIRL_RECORD");
        out = fopen(path ? path : "/dev/null", "w");
    }
    fprintf(out, "%s %s %llu\n", what, name, number);
    pthread_mutex_unlock(&lock);
}

#define DEFINE(name, ...) int name(__VA_ARGS__)
static u64 next = 0x100000000000;
static u64 address(u64 bytes) {
    return __atomic_fetch_add(&next, (bytes + 511) / 512 * 512, __ATOMIC_RELAXED);
}
static void *handle(void) { return malloc(8); }

// The driver.
DEFINE(cuDriverGetVersion, int *v) { *v = 13000; return 0; }
DEFINE(cuDeviceGetCount, int *n) { *n = 1; return 0; }
DEFINE(cuDeviceGet, int *d, int i) { *d = i; return 0; }
DEFINE(cuDeviceGetName, char *s, int n, int d) { (void)d; snprintf(s, n, "none"); return 0; }
DEFINE(cuDeviceTotalMem_v2, size_t *n, int d) { (void)d; *n = 1ull << 37; return 0; }
DEFINE(cuDeviceGetAttribute, int *v, int what, int d) {
    (void)d;
    *v = what == 75 ? 9 : what == 76 ? 0 : what == 115 ? 1 : 132; // compute capability, memory pools
    return 0;
}
static __thread void *current;
DEFINE(cuDevicePrimaryCtxRetain, void **c, int d) { (void)d; *c = (void *)0x10; return 0; }
DEFINE(cuCtxGetCurrent, void **c) { *c = current; return 0; }
DEFINE(cuCtxSetCurrent, void *c) { current = c; return 0; }
DEFINE(cuMemGetInfo_v2, size_t *f, size_t *t) { *f = *t = 1ull << 37; return 0; }
DEFINE(cuDeviceGetDefaultMemPool, void **p, int d) { (void)d; *p = (void *)0x20; return 0; }
DEFINE(cuMemPoolGetAttribute, void *p, int a, u64 *v) { (void)p; (void)a; *v = 0; return 0; }
DEFINE(cuStreamCreate, void **s, unsigned f) { (void)f; *s = handle(); return 0; }
DEFINE(cuStreamIsCapturing, void *s, int *v) { (void)s; *v = 0; return 0; }
DEFINE(cuEventCreate, void **e, unsigned f) { (void)f; *e = handle(); return 0; }
DEFINE(cuMemAlloc_v2, u64 *p, size_t n) { record("alloc", "cuMemAlloc", n); *p = address(n); return 0; }
DEFINE(cuMemAllocAsync, u64 *p, size_t n, void *s) {
    (void)s;
    record("alloc", "cuMemAllocAsync", n);
    *p = address(n);
    return 0;
}
DEFINE(cuMemHostAlloc, void **p, size_t n, unsigned f) { (void)f; *p = malloc(n); return 0; }
DEFINE(cuMemFreeHost, void *p) { free(p); return 0; }
static int back(void *to, size_t n, const char *name) {
    float one = 1;
    record("read", name, n);
    for (size_t i = 0; i + 4 <= n; i += 4) memcpy((char *)to + i, &one, 4);
    return 0;
}
DEFINE(cuMemcpyDtoH_v2, void *to, u64 from, size_t n) { (void)from; return back(to, n, "cuMemcpyDtoH"); }
DEFINE(cuMemcpyDtoHAsync_v2, void *to, u64 from, size_t n, void *s) {
    (void)from; (void)s;
    return back(to, n, "cuMemcpyDtoHAsync");
}
DEFINE(cuMemcpyHtoDAsync_v2, u64 to, void *from, size_t n, void *s) {
    (void)to; (void)from; (void)s;
    record("write", "cuMemcpyHtoDAsync", n);
    return 0;
}
DEFINE(cuMemcpyDtoDAsync_v2, u64 to, u64 from, size_t n, void *s) {
    (void)to; (void)from; (void)s;
    record("copy", "cuMemcpyDtoDAsync", n);
    return 0;
}
DEFINE(cuMemsetD8Async, u64 to, unsigned char v, size_t n, void *s) {
    (void)to; (void)v; (void)s;
    record("fill", "cuMemsetD8Async", n);
    return 0;
}
DEFINE(cuStreamSynchronize, void *s) { (void)s; record("wait", "cuStreamSynchronize", 0); return 0; }
DEFINE(cuCtxSynchronize, void) { record("wait", "cuCtxSynchronize", 0); return 0; }
DEFINE(cuEventSynchronize, void *e) { (void)e; record("host", "cuEventSynchronize", 0); return 0; }
DEFINE(cuModuleLoadData, void **m, const void *i) { (void)i; *m = handle(); return 0; }
DEFINE(cuModuleGetFunction, void **f, void *m, const char *name) { (void)m; *f = strdup(name); return 0; }
DEFINE(cuFuncGetAttribute, int *v, int a, void *f) { (void)a; (void)f; *v = 1024; return 0; }
DEFINE(cuLaunchKernel, void *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned m,
       void *s, void **p, void **e) {
    (void)bx; (void)by; (void)bz; (void)m; (void)s; (void)p; (void)e;
    record("launch", f, (u64)x * y * z);
    return 0;
}
DEFINE(cuGetErrorString, int e, const char **s) { (void)e; *s = "an error"; return 0; }

// The libraries: whatever makes a thing makes this.
#define MAKES(name) DEFINE(name, void **p) { *p = handle(); return 0; }
MAKES(cublasCreate_v2)
MAKES(cublasLtCreate)
MAKES(curandCreateGenerator)
MAKES(cudnnCreate)
MAKES(cudnnCreateTensorDescriptor)
MAKES(cudnnCreateFilterDescriptor)
MAKES(cudnnCreateConvolutionDescriptor)
MAKES(nvrtcCreateProgram)
size_t cudnnGetVersion(void) { return 91900; }
struct performance { int algorithm, status; float time; size_t memory; int rest[5]; };
#define CHOOSES(name) \
    DEFINE(name, void *h, void *a, void *b, void *c, void *d, int n, int *found, struct performance *p) { \
        (void)h; (void)a; (void)b; (void)c; (void)d; (void)n; \
        record("host", #name, 0); \
        memset(p, 0, sizeof *p); \
        p->algorithm = 1; \
        *found = 1; \
        return 0; \
    }
CHOOSES(cudnnGetConvolutionForwardAlgorithm_v7)
CHOOSES(cudnnGetConvolutionBackwardDataAlgorithm_v7)
CHOOSES(cudnnGetConvolutionBackwardFilterAlgorithm_v7)
#define SIZES(name) \
    DEFINE(name, void *h, void *a, void *b, void *c, void *d, int g, size_t *n) { \
        (void)h; (void)a; (void)b; (void)c; (void)d; (void)g; \
        *n = 0; \
        return 0; \
    }
SIZES(cudnnGetConvolutionForwardWorkspaceSize)
SIZES(cudnnGetConvolutionBackwardDataWorkspaceSize)
SIZES(cudnnGetConvolutionBackwardFilterWorkspaceSize)
DEFINE(nvrtcGetPTXSize, void *p, size_t *n) { (void)p; *n = 2; return 0; }
DEFINE(nvrtcGetPTX, void *p, char *s) { (void)p; strcpy(s, "."); return 0; }
DEFINE(nvrtcGetProgramLogSize, void *p, size_t *n) { (void)p; *n = 1; return 0; }
DEFINE(nvrtcGetProgramLog, void *p, char *s) { (void)p; *s = 0; return 0; }
