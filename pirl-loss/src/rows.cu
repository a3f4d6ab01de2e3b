// What happens to an image's row of logits, and per-image negatives without gathering them: what
// rows.rs and fused.rs do on a CPU.
#ifndef __CUDACC_RTC__
#include "../../pirl-model/src/cuda/kernel.h"
#endif

#define THREADS 256 // of a block of contrastive_rows

enum { PAPER, NCE, INFO_NCE, LOG_SUM };

DEVICE double softplus(double x) { return (x > 0.0 ? x : 0.0) + log1p(exp(-fabs(x))); }
DEVICE double sigmoid(double x) {
    double e = exp(-fabs(x));
    return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

// The sum over a block's threads of `mine`, known to all of them.
DEVICE double block_sum(double *shared, double mine) {
    int thread = threadIdx.x;
    shared[thread] = mine;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) shared[thread] += shared[thread + half];
    }
    __syncthreads();
    double sum = shared[0];
    __syncthreads();
    return sum;
}

// The maximum over a block's threads; a NaN may be lost.
DEVICE float block_max(double *shared, float mine) {
    int thread = threadIdx.x;
    shared[thread] = mine;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half && shared[thread + half] > shared[thread])
            shared[thread] = shared[thread + half];
    }
    __syncthreads();
    float max = (float)shared[0];
    __syncthreads();
    return max;
}

// One block of THREADS an image of a tile. Each loss is a mean over images of what this computes.
//
// scores: (images, negatives), inner products of queries and negatives; replaced by dL/dz of the
// negatives, where z = scale * score, except for LOG_SUM. query, positive: (images, dim). own:
// (images), the column that is the image itself and takes no part, or -1; null if there is none.
// losses: (images), the loss, or for LOG_SUM the logarithm of the sum of exp(z) over positive and
// negatives. pulls: (images), dL/dz of the positive.
// log_z and dataset_size are NCE's.
KERNEL contrastive_rows(int kind, float *__restrict__ scores, const float *__restrict__ query,
                        const float *__restrict__ positive, const int *__restrict__ own,
                        int negatives, int dim, double scale, double log_z, double dataset_size,
                        double *__restrict__ losses, float *__restrict__ pulls) {
    const double eps = 1.1920928955078125e-7; // VISSL's guard against a logarithm of 0
    __shared__ double shared[THREADS];
    int image = blockIdx.x, thread = threadIdx.x;
    float *row = scores + (long long)image * negatives;
    int masked = own ? own[image] : -1;
    double valid = masked < 0 ? negatives : negatives - 1;

    double dot = 0.0;
    for (int i = thread; i < dim; i += THREADS)
        dot += (double)query[(long long)image * dim + i] * (double)positive[(long long)image * dim + i];
    double z_p = scale * block_sum(shared, dot);

    if (kind == NCE) {
        double noise = valid / dataset_size;
        double threshold = log_z + log(noise + eps);
        double sum = 0.0;
        for (int n = thread; n < negatives; n += THREADS) {
            float x = (float)(scale * row[n] - threshold);
            float e = expf(-fabsf(x));
            if (n != masked) sum += (x > 0.0f ? x : 0.0f) + log1pf(e);
            row[n] = n == masked ? 0.0f : (x < 0.0f ? e : 1.0f) / (1.0f + e);
        }
        double repulsion = block_sum(shared, sum);
        if (thread == 0) {
            // ln((c + eps) / c), once for each negative.
            double constant = valid * log1p(eps / noise);
            losses[image] = softplus(threshold - z_p) + repulsion + constant;
            pulls[image] = (float)-sigmoid(threshold - z_p);
        }
        return;
    }

    float max = row[masked == 0 ? 1 : 0];
    for (int n = thread; n < negatives; n += THREADS)
        if (n != masked && row[n] > max) max = row[n];
    max = block_max(shared, max);
    double sum = 0.0;
    for (int n = thread; n < negatives; n += THREADS)
        if (n != masked) sum += expf((float)(scale * (row[n] - max)));
    double log_s = scale * max + log(block_sum(shared, sum));

    if (kind == LOG_SUM) {
        double higher = log_s > z_p ? log_s : z_p;
        if (thread == 0) losses[image] = higher + log(exp(log_s - higher) + exp(z_p - higher));
        return;
    }

    double pull = sigmoid(log_s - z_p);
    if (thread == 0) pulls[image] = (float)-pull;
    if (kind == INFO_NCE) {
        for (int n = thread; n < negatives; n += THREADS) {
            float p = expf((float)(scale * row[n] - log_s));
            row[n] = n == masked ? 0.0f : (float)pull * p;
        }
        if (thread == 0) losses[image] = softplus(log_s - z_p);
        return;
    }

    double logs = 0.0, squares = 0.0;
    for (int n = thread; n < negatives; n += THREADS) {
        float x = (float)(scale * row[n] - log_s);
        // A share exceeds 1 by rounding at most.
        float p = n == masked ? 0.0f : expf(x > 0.0f ? 0.0f : x);
        logs += log1pf(p);
        squares += p * p / (1.0f + p);
        row[n] = p;
    }
    double repulsion = block_sum(shared, logs);
    // dL/dz_n = q_n + (pull - sum q) p_n with q = p / (1 + p). As the p sum to 1, 1 - sum q is
    // sum p q, which does not cancel: p_n (pull + sum p q - q_n).
    double level = pull + block_sum(shared, squares);
    for (int n = thread; n < negatives; n += THREADS) {
        float p = row[n];
        row[n] = (float)(p * (level - p / (1.0f + p)));
    }
    if (thread == 0) losses[image] = softplus(log_s - z_p) + repulsion;
}

#define LANES 32
#define HEIGHT 8 // blockDim of the two below is (LANES, HEIGHT)

// scores[image][n] = query[image] . bank[indices[image][n]], without gathering the rows.
// query: (images, dim); bank: (any, dim); indices, scores: (images, negatives).
// Grid: (images, any).
KERNEL indexed_scores(const float *__restrict__ query, const float *__restrict__ bank,
                      const unsigned *__restrict__ indices, int negatives, int dim,
                      float *__restrict__ scores) {
    // A warp multiplies LANES rows, each lane a part of them, and then each lane adds one row up.
    // The odd width keeps lanes off each other's banks.
    __shared__ float parts[HEIGHT][LANES][LANES + 1];
    int lane = threadIdx.x, warp = threadIdx.y;
    long long image = blockIdx.x;
    int step = gridDim.y * HEIGHT * LANES;
    for (int block = blockIdx.y * HEIGHT * LANES; block < negatives; block += step) {
        int first = block + warp * LANES;
        for (int i = 0; i < LANES; ++i) {
            float part = 0.0f;
            if (first + i < negatives) {
                const float *row = bank + (long long)indices[image * negatives + first + i] * dim;
                for (int d = lane; d < dim; d += LANES) part += query[image * dim + d] * row[d];
            }
            parts[warp][i][lane] = part;
        }
        __syncthreads();
        float sum = 0.0f;
        for (int i = 0; i < LANES; ++i) sum += parts[warp][lane][i];
        if (first + lane < negatives) scores[image * negatives + first + lane] = sum;
        __syncthreads();
    }
}

// sums[split][image] = sum over the split's n of coefficients[image][n] * bank[indices[image][n]].
// sums: (splits, images, dim); the rest as above. Grid: (images, splits).
KERNEL indexed_sums(const float *__restrict__ coefficients, const float *__restrict__ bank,
                    const unsigned *__restrict__ indices, int negatives, int dim,
                    float *__restrict__ sums) {
    __shared__ float parts[HEIGHT][LANES];
    int lane = threadIdx.x, height = threadIdx.y;
    long long image = blockIdx.x, images = gridDim.x;
    int split = blockIdx.y, splits = gridDim.y;
    int begin = (int)((long long)negatives * split / splits);
    int end = (int)((long long)negatives * (split + 1) / splits);
    for (int block = 0; block < dim; block += LANES) {
        int d = block + lane;
        float sum = 0.0f;
        if (d < dim) {
            for (int n = begin + height; n < end; n += HEIGHT) {
                long long at = image * negatives + n;
                sum += coefficients[at] * bank[(long long)indices[at] * dim + d];
            }
        }
        parts[height][lane] = sum;
        __syncthreads();
        if (height == 0 && d < dim) {
            for (int i = 1; i < HEIGHT; ++i) sum += parts[i][lane];
            sums[(split * images + image) * dim + d] = sum;
        }
        __syncthreads();
    }
}
