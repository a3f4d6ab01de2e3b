// ROIAlign on NHWC maps: what roi_align/kernels.rs does on a CPU.
//
// A thread handles one channel of one output cell at a time; a warp reads consecutive channels.
#ifndef __CUDACC_RTC__
#include "../../../pirl-model/src/cuda/kernel.h"
#endif

// The samples of one output cell along one axis.
typedef struct {
    float start, size, count; // where the cell begins, its length, samples in it
    long long begin, end;     // samples beyond these lie off the map
} Samples;

// Of the region from `low` to `high` pixels, cut into `bins`, on a map of `size` features. In
// torchvision's order of operations, so that a sample falls between the same two features.
DEVICE Samples samples_of(float low, float high, int bin, int bins, int size, float scale,
                          int sampling_ratio, int aligned) {
    float offset = aligned ? 0.5f : 0.0f;
    float start = low * scale - offset;
    float length = high * scale - offset - start;
    if (!aligned && length < 1.0f) length = 1.0f;
    Samples s;
    s.size = length / (float)bins;
    s.count = sampling_ratio > 0 ? (float)sampling_ratio : ceilf(s.size);
    if (!(s.count > 0.0f)) s.count = 0.0f;
    s.start = start + (float)bin * s.size;
    s.begin = 0;
    s.end = (long long)s.count;
    float step = s.size / s.count;
    if (step > 0.0f && s.count >= 64.0f) {
        // Most samples of a region that reaches far out are not worth a look. The slack is more
        // than the rounding of `start` and `step`.
        double slack = 2.0 + 1e-5 * s.count;
        double first = (-1.0 - s.start) / step - slack;
        double end = ((double)size - s.start) / step + slack;
        if (first > 0.0) s.begin = first < s.count ? (long long)first : s.end;
        if (end < s.count) s.end = end > 0.0 ? (long long)end : 0;
    }
    return s;
}

// Where sample `i` lies: between features *low and *high, the share *share of it towards the
// latter. 0 if it lies off the map.
DEVICE int locate(const Samples *s, long long i, int size, int *low, int *high, float *share) {
    float at = s->start + ((float)i + 0.5f) * s->size / s->count;
    if (!(at >= -1.0f && at <= (float)size)) return 0;
    if (at < 0.0f) at = 0.0f;
    *low = (int)at;
    if (*low >= size - 1) {
        *low = *high = size - 1;
        *share = 0.0f;
    } else {
        *high = *low + 1;
        *share = at - (float)*low;
    }
    return 1;
}

// features: (images, height, width, channels); images: (regions); boxes: (regions, 4), x0, y0, x1,
// y1 in pixels; out: (regions, rows, columns, channels).
// Blocks of one dimension; gridDim.x may be anything.
KERNEL roi_align_forward(const Element *__restrict__ features, const int *__restrict__ images,
                         const float *__restrict__ boxes, int regions, int channels, int height,
                         int width, int rows, int columns, float scale, int sampling_ratio,
                         int aligned, Element *__restrict__ out) {
    long long total = (long long)regions * rows * columns * channels;
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        int channel = (int)(i % channels);
        long long cell = i / channels;
        int column = (int)(cell % columns), row = (int)(cell / columns % rows);
        long long region = cell / columns / rows;
        const float *box = boxes + region * 4;
        Samples ys = samples_of(box[1], box[3], row, rows, height, scale, sampling_ratio, aligned);
        Samples xs = samples_of(box[0], box[2], column, columns, width, scale, sampling_ratio, aligned);
        const Element *map = features + (long long)images[region] * height * width * channels + channel;
        float sum = 0.0f;
        for (long long iy = ys.begin; iy < ys.end; ++iy) {
            int top, bottom, left, right;
            float down, across;
            if (!locate(&ys, iy, height, &top, &bottom, &down)) continue;
            const Element *upper = map + (long long)top * width * channels;
            const Element *lower = map + (long long)bottom * width * channels;
            for (long long ix = xs.begin; ix < xs.end; ++ix) {
                if (!locate(&xs, ix, width, &left, &right, &across)) continue;
                long long l = (long long)left * channels, r = (long long)right * channels;
                sum += (1.0f - down) * ((1.0f - across) * widen(upper[l]) + across * widen(upper[r])) +
                       down * ((1.0f - across) * widen(lower[l]) + across * widen(lower[r]));
            }
        }
        float count = ys.count * xs.count;
        out[i] = narrow(sum / (count > 1.0f ? count : 1.0f));
    }
}

// The gradient of roi_align_forward, added to `d_features`, which starts as zeros. Regions overlap,
// so the order of these additions, and with it their rounding, is not fixed.
KERNEL roi_align_backward(const Element *__restrict__ d_out, const int *__restrict__ images,
                          const float *__restrict__ boxes, int regions, int channels, int height,
                          int width, int rows, int columns, float scale, int sampling_ratio,
                          int aligned, float *__restrict__ d_features) {
    long long total = (long long)regions * rows * columns * channels;
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        int channel = (int)(i % channels);
        long long cell = i / channels;
        int column = (int)(cell % columns), row = (int)(cell / columns % rows);
        long long region = cell / columns / rows;
        const float *box = boxes + region * 4;
        Samples ys = samples_of(box[1], box[3], row, rows, height, scale, sampling_ratio, aligned);
        Samples xs = samples_of(box[0], box[2], column, columns, width, scale, sampling_ratio, aligned);
        float *map = d_features + (long long)images[region] * height * width * channels + channel;
        float count = ys.count * xs.count;
        float d = widen(d_out[i]) / (count > 1.0f ? count : 1.0f);
        for (long long iy = ys.begin; iy < ys.end; ++iy) {
            int top, bottom, left, right;
            float down, across;
            if (!locate(&ys, iy, height, &top, &bottom, &down)) continue;
            float *upper = map + (long long)top * width * channels;
            float *lower = map + (long long)bottom * width * channels;
            for (long long ix = xs.begin; ix < xs.end; ++ix) {
                if (!locate(&xs, ix, width, &left, &right, &across)) continue;
                long long l = (long long)left * channels, r = (long long)right * channels;
                atomicAdd(upper + l, (1.0f - down) * (1.0f - across) * d);
                atomicAdd(upper + r, (1.0f - down) * across * d);
                atomicAdd(lower + l, down * (1.0f - across) * d);
                atomicAdd(lower + r, down * across * d);
            }
        }
    }
}
