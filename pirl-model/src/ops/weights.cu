// Weights of convolutions from PyTorch's layout, (c_out, c_in, k, k), to that of products on channels-last maps,
// (c_out, k, k, c_in), and their gradients back: all weights of a network in one launch.
//
// All lie in flat tensors, each at the same place in either layout. blockIdx.y is the weight, whose numbers are
// shared out over the threads of gridDim.x blocks. `places` has four numbers for each weight: where it begins,
// how many numbers it has, c_in, and k * k.
#ifndef __CUDACC_RTC__
#include "../cuda/kernel.h"
#endif

KERNEL weights_to_channels_last(const float *__restrict__ flat, const long long *__restrict__ places,
                                Element *__restrict__ out) {
    const long long *place = places + 4 * blockIdx.y;
    long long start = place[0], len = place[1], channels = place[2], taps = place[3];
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < len; i += step) {
        long long channel = i % channels, tap = i / channels % taps, filter = i / channels / taps;
        out[start + i] = narrow(flat[start + (filter * channels + channel) * taps + tap]);
    }
}

KERNEL weight_gradients_from_channels_last(const Element *__restrict__ from,
                                           const long long *__restrict__ places,
                                           float *__restrict__ gradient) {
    const long long *place = places + 4 * blockIdx.y;
    long long start = place[0], len = place[1], channels = place[2], taps = place[3];
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < len; i += step) {
        long long tap = i % taps, channel = i / taps % channels, filter = i / taps / channels;
        gradient[start + i] = widen(from[start + (filter * taps + tap) * channels + channel]);
    }
}
