// Runs a CUDA kernel on a CPU: in front of a kernel's source instead of pirl-model/src/cuda/kernel.h,
// it makes the source C.
//
// The threads of a block are coroutines that take turns at barriers, in rising or falling order. What
// depends on the order, because a barrier is missing, differs between the two. A barrier that not
// every thread of the block reaches is an error, and shared memory starts as NaN.
#pragma once

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef struct {
    unsigned x, y, z;
} dim3;

static dim3 threadIdx, blockIdx, blockDim, gridDim;

#define KERNEL void
#define DEVICE static inline
#define __restrict__ __restrict
#define __shared__ static __attribute__((section("cuda_shared")))
#define __syncthreads() cuda_barrier(__LINE__)

extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

enum { CUDA_STACK = 64 << 10 };

typedef struct {
    ucontext_t context;
    dim3 index;
    int barrier; // the line it waits at, 0 once it has ended
} CudaThread;

static ucontext_t cuda_scheduler;
static CudaThread *cuda_thread;
static void (*cuda_body)(void *);
static void *cuda_data;

static void cuda_barrier(int line) {
    cuda_thread->barrier = line;
    swapcontext(&cuda_thread->context, &cuda_scheduler);
}

static void cuda_run(void) {
    cuda_body(cuda_data);
    cuda_thread->barrier = 0;
}

static void cuda_prepare(CudaThread *thread, char *stack) {
    getcontext(&thread->context);
    thread->context.uc_stack.ss_sp = stack;
    thread->context.uc_stack.ss_size = CUDA_STACK;
    thread->context.uc_link = &cuda_scheduler;
    makecontext(&thread->context, cuda_run, 0);
}

// Runs all threads of a block up to their next barrier; returns its line, 0 if they have ended, and
// -1 if they are at different places.
static int cuda_turn(CudaThread *threads, unsigned count, int falling) {
    for (unsigned i = 0; i < count; ++i) {
        cuda_thread = &threads[falling ? count - 1 - i : i];
        threadIdx = cuda_thread->index;
        swapcontext(&cuda_scheduler, &cuda_thread->context);
    }
    for (unsigned i = 1; i < count; ++i)
        if (threads[i].barrier != threads[0].barrier) return -1;
    return threads[0].barrier;
}

// Calls body(data), which calls the kernel, for every thread of a launch; 0 if all went well, 1 if a
// barrier was not reached by all.
int cuda_launch(dim3 grid, dim3 block, int falling, void (*body)(void *), void *data) {
    unsigned count = block.x * block.y * block.z;
    CudaThread *threads = calloc(count, sizeof(CudaThread));
    char *stacks = malloc((size_t)count * CUDA_STACK);
    int barrier = 0;
    cuda_body = body;
    cuda_data = data;
    gridDim = grid;
    blockDim = block;
    for (unsigned b = 0; b < grid.x * grid.y * grid.z && barrier == 0; ++b) {
        blockIdx = (dim3){b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        if (__start_cuda_shared)
            memset(__start_cuda_shared, 0xFF, __stop_cuda_shared - __start_cuda_shared);
        for (unsigned t = 0; t < count; ++t) {
            threads[t].index = (dim3){t % block.x, t / block.x % block.y, t / block.x / block.y};
            cuda_prepare(&threads[t], stacks + (size_t)t * CUDA_STACK);
        }
        do {
            barrier = cuda_turn(threads, count, falling);
        } while (barrier > 0);
    }
    free(threads);
    free(stacks);
    return barrier != 0;
}

// One thread runs at a time, so nothing comes between.
static inline float atomicAdd(float *address, float value) {
    float old = *address;
    *address = old + value;
    return old;
}

DEVICE float float_from_bits(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

DEVICE unsigned bits_of_float(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// The compiler is told not to fuse.
DEVICE float product(float a, float b) { return a * b; }

#ifdef PIRL_F16
DEVICE float float_from_half(unsigned short bits) {
    _Float16 x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

DEVICE unsigned short half_from_float(float value) {
    _Float16 x = (_Float16)value;
    unsigned short bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
#endif
