#!/usr/bin/env python3
"""Archives to link with in place of NVIDIA's libraries: libcuda.a, libcublas.a and so on.

    python3 scripts/gpu/stubs.py FOLDER            (scripts/cuda-env.sh calls it)

Every function of theirs that cudarc declares jumps to the library's own, which is looked for when one of
them is first called. So a program starts on machines without any of them, and it can be linked without
them. Without the driver its functions return CUDA_ERROR_NO_DEVICE, which programs report as an error of
theirs. Candle opens cuRAND with every device, and this project draws no number on one: without it all but
drawing succeeds. Any other missing library, or a function that an old one lacks, ends the process with a line that says what
is missing, where it was looked for and what brings it.

x86-64 and the calling convention of Linux. Needs cargo, for the place of cudarc's source, a C compiler and
ar.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

# Name of the archive, module of cudarc, library, what brings it.
LIBRARIES = [
    ("cuda", "driver", "libcuda.so.1", "NVIDIA's driver"),
    ("cublas", "cublas", "libcublas.so.13", "CUDA 13 or `pip install nvidia-cublas`"),
    ("cublasLt", "cublaslt", "libcublasLt.so.13", "CUDA 13 or `pip install nvidia-cublas`"),
    ("curand", "curand", "libcurand.so.10", "CUDA 13 or `pip install nvidia-curand`"),
    ("nvrtc", "nvrtc", "libnvrtc.so.13", "CUDA 13 or `pip install nvidia-cuda-nvrtc`"),
    ("cudnn", "cudnn", "libcudnn.so.9", "cuDNN 9 for CUDA 13 or `pip install nvidia-cudnn-cu13`"),
    ("nccl", "nccl", "libnccl.so.2", "NCCL 2 for CUDA 13 or `pip install nvidia-nccl-cu13`"),
]

TRAMPOLINES = r"""
    .text
    .type slow_{id}, @function
slow_{id}:                        # the function's number is on the stack
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push %r8
    push %r9
    push %rax
    sub $136, %rsp
    movups %xmm0, (%rsp)
    movups %xmm1, 16(%rsp)
    movups %xmm2, 32(%rsp)
    movups %xmm3, 48(%rsp)
    movups %xmm4, 64(%rsp)
    movups %xmm5, 80(%rsp)
    movups %xmm6, 96(%rsp)
    movups %xmm7, 112(%rsp)
    mov 192(%rsp), %rdi
    call find_{id}
    mov %rax, %r11
    movups (%rsp), %xmm0
    movups 16(%rsp), %xmm1
    movups 32(%rsp), %xmm2
    movups 48(%rsp), %xmm3
    movups 64(%rsp), %xmm4
    movups 80(%rsp), %xmm5
    movups 96(%rsp), %xmm6
    movups 112(%rsp), %xmm7
    add $136, %rsp
    pop %rax
    pop %r9
    pop %r8
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    add $8, %rsp
    jmp *%r11
"""

TRAMPOLINE = r"""
    .globl {name}
    .type {name}, @function
{name}:
    mov places_{id}+{offset}(%rip), %r11
    test %r11, %r11
    je 1f
    jmp *%r11
1:  push ${number}
    jmp slow_{id}
"""

RESOLVER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__attribute__((visibility("hidden"))) void *places_@id@[@count@];
static const char *const names[] = {@names@};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *library;
static char reason[512];

static void open_library(void) {
    library = dlopen("@library@", RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
        const char *said = dlerror();
        snprintf(reason, sizeof reason, "%s", said ? said : "not found");
    }
}

static int without(void) { return @without@; }

__attribute__((visibility("hidden"))) void *find_@id@(unsigned long number) {
    pthread_once(&once, open_library);
    void *function = library ? dlsym(library, names[number]) : 0;
    if (!function && !library && (@tolerated@)) function = (void *)without;
    if (!function) {
        const char *folders = getenv("LD_LIBRARY_PATH");
        if (library)
            fprintf(stderr, "error: @library@ has no %s: it is too old a version; @brings@ brings a newer one\n",
                    names[number]);
        else
            fprintf(stderr,
                    "error: @library@ is missing (%s); looked in LD_LIBRARY_PATH (%s) and the system's folders; "
                    "it comes with @brings@, and LD_LIBRARY_PATH must name its folder\n",
                    reason, folders ? folders : "not set");
        _exit(1);
    }
    places_@id@[number] = function;
    return function;
}
"""

LEFT_OUT = r"""
#include <stdio.h>
#include <unistd.h>
static void left_out(void) {
    fputs("error: Candle's kernels for quantised weights are left out of this build (scripts/gpu/nvcc)\n", stderr);
    _exit(1);
}
"""


def sources():
    """The folders of cudarc and candle-kernels."""
    out = subprocess.run(["cargo", "metadata", "--locked", "--all-features", "--format-version", "1"], check=True, stdout=subprocess.PIPE)
    packages = {p["name"]: pathlib.Path(p["manifest_path"]).parent for p in json.loads(out.stdout)["packages"]}
    return packages["cudarc"], packages["candle-kernels"]


def archive(folder, name, code):
    with tempfile.TemporaryDirectory() as scratch:
        source, built = pathlib.Path(scratch, f"{name}.c"), pathlib.Path(scratch, f"{name}.o")
        source.write_text(code)
        subprocess.run(["cc", "-O2", "-fPIC", "-c", source, "-o", built], check=True)
        path = folder / f"lib{name}.a"
        path.unlink(missing_ok=True)
        subprocess.run(["ar", "rcs", path, built], check=True)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    cudarc, kernels = sources()
    for name, module, library, brings in LIBRARIES:
        text = (cudarc / "src" / module / "sys" / "mod.rs").read_text()
        functions = sorted(set(re.findall(r'load::<_F>\("(\w+)"\)', text)))
        if not functions:
            sys.exit(f"cudarc declares no function of {library}: its source is not as this script expects")
        assembly = TRAMPOLINES.format(id=name) + "".join(
            TRAMPOLINE.format(id=name, name=function, number=number, offset=8 * number)
            for number, function in enumerate(functions)
        )
        code = RESOLVER.replace("@id@", name).replace("@count@", str(len(functions))).replace("@library@", library)
        code = code.replace("@brings@", brings)
        # What to return where a library is missing, and for which functions.
        without, tolerated = {
            "driver": ("100", "1"),  # CUDA_ERROR_NO_DEVICE
            "curand": ("0", 'strncmp(names[number], "curandGenerate", 14)'),
        }.get(module, ("0", "0"))
        code = code.replace("@without@", without).replace("@tolerated@", tolerated)
        code = code.replace("@names@", ", ".join(f'"{function}"' for function in functions))
        lines = "".join(f'    "{line}\\n"\n' for line in assembly.replace('"', '\\"').splitlines())
        archive(folder, name, f"{code}\n__asm__(\n{lines});\n")
    # What scripts/gpu/nvcc leaves out; without it nothing needs the CUDA runtime.
    text = (kernels / "src" / "ffi.rs").read_text()
    functions = sorted(set(re.findall(r"pub fn (\w+)\(", text)))
    aliases = (f'void {function}(void) __attribute__((alias("left_out")));' for function in functions)
    archive(folder, "cudart", LEFT_OUT + "\n".join(aliases))


if __name__ == "__main__":
    main()
