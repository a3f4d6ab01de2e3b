// Batch norm over the rows of an NHWC batch, with the residual addition and the ReLU that follow it:
// what batch_norm.rs does on a CPU.
//
// A block has LANES threads along the channels, so that a warp reads consecutive numbers, and as many
// rows as it is high. Sums over rows go through `splits` partial results (gridDim.y), which are added
// in a fixed order: the result of a launch does not depend on its timing.
#ifndef __CUDACC_RTC__
#include "../cuda/kernel.h"
#endif

#define LANES 32
#define ROWS 16 // blockDim is (LANES, ROWS)

// The rows of split `split` out of `splits` begin here.
DEVICE long long first_row(long long rows, int split, int splits) { return rows * split / splits; }

// Mean and sum of squared deviations of two sets of rows, from those of each (Chan, Golub, LeVeque
// 1979): nothing cancels, whatever the mean.
DEVICE void merge_moments(float *count, float *mean, float *square, float count_b, float mean_b,
                          float square_b) {
    float total = *count + count_b;
    if (count_b == 0.0f) return;
    float delta = mean_b - *mean;
    float weight = count_b / total;
    *mean += delta * weight;
    *square += square_b + delta * delta * *count * weight;
    *count = total;
}

// x: (rows, channels). means, squares: (splits, channels), the moments of each split's rows.
// Grid: (channels / LANES rounded up, splits).
KERNEL batch_norm_moments(const Element *__restrict__ x, long long rows, int channels,
                          float *__restrict__ means, float *__restrict__ squares) {
    __shared__ float shared_count[ROWS][LANES];
    __shared__ float shared_mean[ROWS][LANES];
    __shared__ float shared_square[ROWS][LANES];
    int lane = threadIdx.x, height = threadIdx.y;
    int channel = blockIdx.x * LANES + lane;
    int split = blockIdx.y, splits = gridDim.y;
    float count = 0.0f, mean = 0.0f, square = 0.0f;
    if (channel < channels) {
        long long end = first_row(rows, split + 1, splits);
        for (long long row = first_row(rows, split, splits) + height; row < end; row += ROWS) {
            float value = widen(x[row * channels + channel]);
            float delta = value - mean;
            count += 1.0f;
            mean += delta / count;
            square += delta * (value - mean);
        }
    }
    shared_count[height][lane] = count;
    shared_mean[height][lane] = mean;
    shared_square[height][lane] = square;
    for (int half = ROWS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (height < half) {
            merge_moments(&shared_count[height][lane], &shared_mean[height][lane],
                          &shared_square[height][lane], shared_count[height + half][lane],
                          shared_mean[height + half][lane], shared_square[height + half][lane]);
        }
    }
    if (height == 0 && channel < channels) {
        means[split * channels + channel] = shared_mean[0][lane];
        squares[split * channels + channel] = shared_square[0][lane];
    }
}

// Joins the splits: mean, biased variance and 1 / sqrt(variance + eps), all (channels).
// A thread per channel.
KERNEL batch_norm_statistics(const float *__restrict__ means, const float *__restrict__ squares,
                             long long rows, int channels, int splits, float eps,
                             float *__restrict__ mean, float *__restrict__ variance,
                             float *__restrict__ inv_std) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    double count = 0.0, centre = 0.0, square = 0.0;
    for (int split = 0; split < splits; ++split) {
        double more = (double)(first_row(rows, split + 1, splits) - first_row(rows, split, splits));
        if (more == 0.0) continue;
        double delta = means[split * channels + channel] - centre;
        double weight = more / (count + more);
        centre += delta * weight;
        square += squares[split * channels + channel] + delta * delta * count * weight;
        count += more;
    }
    mean[channel] = (float)centre;
    variance[channel] = (float)(square / count);
    inv_std[channel] = (float)(1.0 / sqrt(square / count + eps));
}

// out = [relu](gamma (x - mean) inv_std + beta [+ residual]).
// x, residual (may be null), out: (rows, channels); the rest: (channels).
// Grid: (channels / LANES rounded up, any).
KERNEL batch_norm_apply(const Element *__restrict__ x, const Element *__restrict__ residual,
                        long long rows, int channels, const float *__restrict__ gamma,
                        const float *__restrict__ beta, const float *__restrict__ mean,
                        const float *__restrict__ inv_std, int relu, Element *__restrict__ out) {
    int channel = blockIdx.x * LANES + threadIdx.x;
    if (channel >= channels) return;
    float scale = gamma[channel] * inv_std[channel];
    float shift = beta[channel] - mean[channel] * scale;
    long long step = (long long)gridDim.y * ROWS;
    for (long long row = (long long)blockIdx.y * ROWS + threadIdx.y; row < rows; row += step) {
        long long i = row * channels + channel;
        float y = widen(x[i]) * scale + shift;
        if (residual) y += widen(residual[i]);
        // A NaN is not below 0, so it passes.
        out[i] = narrow(relu && y < 0.0f ? 0.0f : y);
    }
}

// The gradient of the value that ReLU was given, from that of its output: 0 where it cut off.
DEVICE float before_relu(const Element *out, long long i, int relu, float dy) {
    return relu && widen(out[i]) <= 0.0f ? 0.0f : dy;
}

// Sums over each split's rows of d and of d (x - mean) inv_std, where d is `dy` before ReLU.
// x, out, dy: (rows, channels); sums, products: (splits, channels).
// Grid: (channels / LANES rounded up, splits).
KERNEL batch_norm_gradient_sums(const Element *__restrict__ x, const Element *__restrict__ out,
                                const Element *__restrict__ dy, long long rows, int channels,
                                const float *__restrict__ mean, const float *__restrict__ inv_std,
                                int relu, float *__restrict__ sums, float *__restrict__ products) {
    __shared__ float shared_sum[ROWS][LANES];
    __shared__ float shared_product[ROWS][LANES];
    int lane = threadIdx.x, height = threadIdx.y;
    int channel = blockIdx.x * LANES + lane;
    int split = blockIdx.y, splits = gridDim.y;
    float sum = 0.0f, product = 0.0f;
    if (channel < channels) {
        float centre = mean[channel];
        long long end = first_row(rows, split + 1, splits);
        for (long long row = first_row(rows, split, splits) + height; row < end; row += ROWS) {
            long long i = row * channels + channel;
            float d = before_relu(out, i, relu, widen(dy[i]));
            sum += d;
            product += d * (widen(x[i]) - centre);
        }
        product *= inv_std[channel];
    }
    shared_sum[height][lane] = sum;
    shared_product[height][lane] = product;
    for (int half = ROWS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (height < half) {
            shared_sum[height][lane] += shared_sum[height + half][lane];
            shared_product[height][lane] += shared_product[height + half][lane];
        }
    }
    if (height == 0 && channel < channels) {
        sums[split * channels + channel] = shared_sum[0][lane];
        products[split * channels + channel] = shared_product[0][lane];
    }
}

// Joins the splits: the gradients of gamma and beta, (channels). A thread per channel.
KERNEL batch_norm_gradient_totals(const float *__restrict__ sums, const float *__restrict__ products,
                                  int channels, int splits, float *__restrict__ dgamma,
                                  float *__restrict__ dbeta) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    double sum = 0.0, product = 0.0;
    for (int split = 0; split < splits; ++split) {
        sum += sums[split * channels + channel];
        product += products[split * channels + channel];
    }
    dgamma[channel] = (float)product;
    dbeta[channel] = (float)sum;
}

// The gradients of x, and of the residual unless null, both (rows, channels). With `centred` the
// statistics are the batch's own and depend on x, else they are constants.
// Grid: (channels / LANES rounded up, any).
KERNEL batch_norm_input_gradient(const Element *__restrict__ x, const Element *__restrict__ out,
                                 const Element *__restrict__ dy, long long rows, int channels,
                                 const float *__restrict__ gamma, const float *__restrict__ mean,
                                 const float *__restrict__ inv_std,
                                 const float *__restrict__ dgamma, const float *__restrict__ dbeta,
                                 int relu, int centred, Element *__restrict__ dx,
                                 Element *__restrict__ dresidual) {
    int channel = blockIdx.x * LANES + threadIdx.x;
    if (channel >= channels) return;
    // dx = scale (d - mean(d) - xhat mean(d xhat)), as one line in d and x - mean.
    float scale = gamma[channel] * inv_std[channel];
    float centre = mean[channel];
    float shift = centred ? -scale * (dbeta[channel] / (float)rows) : 0.0f;
    float slope = centred ? -scale * inv_std[channel] * (dgamma[channel] / (float)rows) : 0.0f;
    long long step = (long long)gridDim.y * ROWS;
    for (long long row = (long long)blockIdx.y * ROWS + threadIdx.y; row < rows; row += step) {
        long long i = row * channels + channel;
        float d = before_relu(out, i, relu, widen(dy[i]));
        dx[i] = narrow(scale * d + slope * (widen(x[i]) - centre) + shift);
        if (dresidual) dresidual[i] = narrow(d);
    }
}
