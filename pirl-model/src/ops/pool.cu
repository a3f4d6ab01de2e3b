// Max-pooling of NHWC maps: what pool.rs does on a CPU.
//
// A thread handles one number of a row, blockIdx.x running along columns and channels; rows of all
// images are shared out over gridDim.y.
#ifndef __CUDACC_RTC__
#include "../cuda/kernel.h"
#endif

// The first pixel under a window beginning at `start`, and the one after its last.
DEVICE int window_begin(int start) { return start < 0 ? 0 : start; }
DEVICE int window_end(int start, int kernel, int size) {
    return start + kernel < size ? start + kernel : size;
}

// x: (images, height, width, channels); out, argmax: (images, out_height, out_width, channels).
// argmax receives the pixel, y * width + x within its image, of the maximum: the first in row order
// among equals, and a NaN wins.
KERNEL max_pool_forward(const Element *__restrict__ x, int images, int height, int width,
                        int channels, int kernel, int stride, int padding, int out_height,
                        int out_width, Element *__restrict__ out, unsigned *__restrict__ argmax) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long row_length = (long long)out_width * channels;
    if (at >= row_length) return;
    int channel = (int)(at % channels);
    int start_x = (int)(at / channels) * stride - padding;
    int begin_x = window_begin(start_x), end_x = window_end(start_x, kernel, width);
    for (long long row = blockIdx.y; row < (long long)images * out_height; row += gridDim.y) {
        int start_y = (int)(row % out_height) * stride - padding;
        int begin_y = window_begin(start_y), end_y = window_end(start_y, kernel, height);
        const Element *image = x + row / out_height * height * width * channels + channel;
        unsigned winner = begin_y * width + begin_x;
        float best = widen(image[(long long)winner * channels]);
        for (int iy = begin_y; iy < end_y; ++iy) {
            for (int ix = begin_x; ix < end_x; ++ix) {
                unsigned pixel = iy * width + ix;
                float value = widen(image[(long long)pixel * channels]);
                if (value > best || value != value) {
                    best = value;
                    winner = pixel;
                }
            }
        }
        out[row * row_length + at] = narrow(best);
        if (argmax) argmax[row * row_length + at] = winner;
    }
}

// Each pixel of dx, shaped as x above, collects the gradients of the windows it won, in their order:
// nothing is added by two threads.
KERNEL max_pool_backward(const unsigned *__restrict__ argmax, const Element *__restrict__ dy,
                         int images, int height, int width, int channels, int kernel, int stride,
                         int padding, int out_height, int out_width, Element *__restrict__ dx) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long row_length = (long long)width * channels;
    if (at >= row_length) return;
    int channel = (int)(at % channels);
    int ix = (int)(at / channels);
    // Windows that cover the pixel start within `kernel - 1` before it.
    int last_x = (ix + padding) / stride;
    int first_x = (ix + padding - kernel + stride) / stride;
    if (ix + padding < kernel) first_x = 0;
    if (last_x >= out_width) last_x = out_width - 1;
    for (long long row = blockIdx.y; row < (long long)images * height; row += gridDim.y) {
        int iy = (int)(row % height);
        unsigned pixel = iy * width + ix;
        int last_y = (iy + padding) / stride;
        int first_y = (iy + padding - kernel + stride) / stride;
        if (iy + padding < kernel) first_y = 0;
        if (last_y >= out_height) last_y = out_height - 1;
        long long image = row / height * out_height * out_width * channels + channel;
        float sum = 0.0f;
        for (int oy = first_y; oy <= last_y; ++oy) {
            for (int ox = first_x; ox <= last_x; ++ox) {
                long long i = image + ((long long)oy * out_width + ox) * channels;
                if (argmax[i] == pixel) sum += widen(dy[i]);
            }
        }
        dx[row * row_length + at] = narrow(sum);
    }
}
