// What every CUDA kernel of this project begins with.
//
// Kernels are plain C, so that tests run them on a CPU: there benches/src/cuda_shim.h is put in front
// of this header and makes a C compiler understand what is CUDA's. The run-time compiler is given
// header and kernels as one text, as it has no files.
//
// Activations are `Element`: float, or with -DPIRL_BF16 or -DPIRL_F16 the bits of such a number.
// Arithmetic is in float.
#ifndef PIRL_KERNEL_H
#define PIRL_KERNEL_H

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__

DEVICE float float_from_bits(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned bits_of_float(float x) { return __float_as_uint(x); }
// A product rounded before anything is added to it.
DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
DEVICE float float_from_half(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
DEVICE unsigned short half_from_float(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif

#if defined(PIRL_BF16)
typedef unsigned short Element;
DEVICE float widen(Element x) { return float_from_bits((unsigned)x << 16); }
// To the nearest, of two equally near the even; a NaN stays one.
DEVICE Element narrow(float x) {
    unsigned bits = bits_of_float(x);
    if (x != x) return (Element)((bits | 0x400000u) >> 16);
    return (Element)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
#elif defined(PIRL_F16)
typedef unsigned short Element;
DEVICE float widen(Element x) { return float_from_half(x); }
DEVICE Element narrow(float x) { return half_from_float(x); }
#else
typedef float Element;
DEVICE float widen(Element x) { return x; }
DEVICE Element narrow(float x) { return x; }
#endif

#endif
