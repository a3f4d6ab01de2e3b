// A step of SGD with momentum, in PyTorch's form: what sgd.rs does on a CPU.
#ifndef __CUDACC_RTC__
#include "../cuda/kernel.h"
#endif

// d = scale (g + decay w); m = momentum m + d; w -= rate m, or with Nesterov rate (d + momentum m).
// All have `len` numbers. The threads share them out.
KERNEL sgd_step(float *__restrict__ values, float *__restrict__ momenta,
                const float *__restrict__ gradient, const float *__restrict__ decay,
                const float *__restrict__ scale, long long len, float momentum, int nesterov,
                float rate) {
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < len; i += step) {
        float direction = scale[i] * (gradient[i] + decay[i] * values[i]);
        float moved = momentum * momenta[i] + direction;
        momenta[i] = moved;
        values[i] -= rate * (nesterov ? direction + momentum * moved : moved);
    }
}
