// Non-maximum suppression, in nms.rs's roundings.
#ifndef __CUDACC_RTC__
#include "../../../pirl-model/src/cuda/kernel.h"
#endif

#define BITS 64        // of a word, and threads of a block of nms_overlaps
#define MAX_WORDS 4096 // of a row: 262,144 boxes
#define THREADS 256    // of the block of nms_keep

typedef unsigned long long Word;

// boxes: (count, 4), x0, y0, x1, y1, by falling score; classes: (count), boxes of two classes do not
// overlap. overlaps: (count, words) for words of BITS boxes each: bit j of word w of row i says
// whether box w * BITS + j comes after box i and has an IoU above `threshold` with it.
// Grid: (words, words).
KERNEL nms_overlaps(const float *__restrict__ boxes, const int *__restrict__ classes, int count,
                    float threshold, Word *__restrict__ overlaps) {
    int words = (count + BITS - 1) / BITS;
    int i = blockIdx.y * BITS + threadIdx.x;
    int first = blockIdx.x * BITS;
    if (i >= count) return;
    const float *a = boxes + 4LL * i;
    float area = product(a[2] - a[0], a[3] - a[1]);
    Word word = 0;
    for (int j = 0; j < BITS && first + j < count; ++j) {
        if (first + j <= i || classes[first + j] != classes[i]) continue;
        const float *b = boxes + 4LL * (first + j);
        float w = (b[2] < a[2] ? b[2] : a[2]) - (b[0] > a[0] ? b[0] : a[0]);
        float h = (b[3] < a[3] ? b[3] : a[3]) - (b[1] > a[1] ? b[1] : a[1]);
        float common = product(w > 0.0f ? w : 0.0f, h > 0.0f ? h : 0.0f);
        float all = area + product(b[2] - b[0], b[3] - b[1]) - common;
        if (common / all > threshold) word |= (Word)1 << j;
    }
    overlaps[(long long)i * words + blockIdx.x] = word;
}

// The first `most` boxes that overlap none kept before them: kept[0] is how many, their numbers
// follow. kept: (1 + most). One block; at most MAX_WORDS words.
KERNEL nms_keep(const Word *__restrict__ overlaps, int count, int most, int *__restrict__ kept) {
    __shared__ Word gone[MAX_WORDS];
    int words = (count + BITS - 1) / BITS;
    for (int w = threadIdx.x; w < words; w += THREADS) gone[w] = 0;
    __syncthreads();
    int found = 0;
    for (int i = 0; i < count && found < most; ++i) {
        if (gone[i / BITS] >> (i % BITS) & 1) continue;
        if (threadIdx.x == 0) kept[1 + found] = i;
        ++found;
        __syncthreads(); // all have looked before anybody writes
        for (int w = i / BITS + threadIdx.x; w < words; w += THREADS)
            gone[w] |= overlaps[(long long)i * words + w];
        __syncthreads();
    }
    if (threadIdx.x == 0) kept[0] = found;
}
