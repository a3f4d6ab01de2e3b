//! CUDA kernels on a CPU, for tests: `cuda_shim.h` makes C of them, the machine's C compiler a
//! library, and [`Kernels`] launches what is in it.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::process::Command;

use half::{bf16, f16};
use libloading::{Library, Symbol};
use tempfile::TempDir;

/// Kernels compiled for the CPU.
///
/// ```no_run
/// use benches::{Buffer, Kernels};
///
/// let kernels = Kernels::compile::<f32>("src/ops/double.cu");
/// let x = Buffer::new(&[1f32, 2.0]);
/// type Double = unsafe extern "C" fn(*mut f32, i32);
/// let double = kernels.get::<Double>("double");
/// // SAFETY: `x` has two numbers.
/// kernels.launch((1, 1, 1), (32, 1, 1), || unsafe { double(x.pointer(), 2) });
/// assert_eq!(x.values(), [2.0, 4.0]);
/// ```
pub struct Kernels {
    library: Library,
    falling: Cell<bool>,
    _folder: TempDir,
}

/// A launch's size along x, y and z.
pub type Dim3 = (u32, u32, u32);

/// CUDA's `dim3`.
#[repr(C)]
struct Size(u32, u32, u32);

type Launch =
    unsafe extern "C" fn(Size, Size, c_int, extern "C" fn(*mut c_void), *mut c_void) -> c_int;

impl Kernels {
    /// The kernels of a `.cu` file for activations stored as `T`, compiled by `$CC`, or `cc`.
    ///
    /// # Panics
    /// If there is no C compiler, or it does not compile the file.
    pub fn compile<T: Stored>(source: impl AsRef<Path>) -> Self {
        let source = source.as_ref();
        let folder = tempfile::tempdir().expect("a folder for the kernels");
        let library = folder.path().join("kernels.so");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let shim = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda_shim.h");
        let mut command = Command::new(compiler);
        command.args([
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Werror",
            "-Wno-unused-function",
        ]);
        command.args(["-ffp-contract=off", "-fPIC", "-shared", "-include", shim]);
        command.args(T::DEFINE);
        command
            .args(["-x", "c"])
            .arg(source)
            .arg("-o")
            .arg(&library)
            .arg("-lm");
        let output = command.output().expect("a C compiler");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {message}", source.display());
        Self {
            // SAFETY: the library was made from our own kernels and runs nothing when loaded.
            library: unsafe { Library::new(&library) }.expect("the kernels just compiled"),
            falling: Cell::new(false),
            _folder: folder,
        }
    }

    /// Whether the threads of a block take their turns from the last to the first from now on.
    /// Kernels must give the same results; where a barrier is missing they do not.
    pub fn set_falling(&self, falling: bool) {
        self.falling.set(falling);
    }

    /// The kernel `name`, whose type must be `T`.
    ///
    /// # Panics
    /// If there is none.
    pub fn get<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: to call what is returned is unsafe, and whoever does it answers for its type.
        let symbol = unsafe { self.library.get(name.as_bytes()) };
        symbol.unwrap_or_else(|_| panic!("no kernel {name}"))
    }

    /// Runs `thread`, which calls a kernel, for each thread of `grid` blocks of `block` threads.
    ///
    /// # Panics
    /// If some threads of a block wait at a barrier that others do not reach.
    pub fn launch(&self, grid: Dim3, block: Dim3, thread: impl Fn()) {
        extern "C" fn call<F: Fn()>(thread: *mut c_void) {
            // SAFETY: `launch` passes a pointer to the `F` it has borrowed for the whole call.
            unsafe { (*thread.cast::<F>())() }
        }
        fn body<F: Fn()>(_: &F) -> extern "C" fn(*mut c_void) {
            call::<F>
        }
        let launch = self.get::<Launch>("cuda_launch");
        let (grid, block) = (
            Size(grid.0, grid.1, grid.2),
            Size(block.0, block.1, block.2),
        );
        let data = (&raw const thread).cast_mut().cast();
        // SAFETY: this is the shim's function, and `data` what its argument `body` takes.
        let failed = unsafe { launch(grid, block, self.falling.get().into(), body(&thread), data) };
        assert_eq!(
            failed, 0,
            "a barrier that some threads of a block did not reach"
        );
    }
}

/// The types that activations are stored in on a GPU.
pub trait Stored: Copy + From<u8> + PartialEq {
    /// The compiler's argument that makes it a kernel's `Element`.
    const DEFINE: Option<&'static str>;
    /// Largest relative error of rounding to it.
    const ROUNDING: f32;

    /// The nearest number.
    fn from_f32(x: f32) -> Self;
    /// The same number.
    fn to_f32(self) -> f32;

    /// Rounded to this type and back.
    fn round(values: &[f32]) -> Vec<f32> {
        values.iter().map(|&x| Self::from_f32(x).to_f32()).collect()
    }
}

macro_rules! stored {
    ($type:ty, $define:expr, $bits:literal, $from:expr, $to:expr) => {
        impl Stored for $type {
            const DEFINE: Option<&'static str> = $define;
            const ROUNDING: f32 = 1.0 / (1u64 << $bits) as f32;

            fn from_f32(x: f32) -> Self {
                $from(x)
            }

            fn to_f32(self) -> f32 {
                $to(self)
            }
        }
    };
}

stored!(f32, None, 24, |x| x, |x| x);
stored!(bf16, Some("-DPIRL_BF16"), 8, bf16::from_f32, bf16::to_f32);
stored!(f16, Some("-DPIRL_F16"), 11, f16::from_f32, f16::to_f32);

/// Numbers in the memory of a kernel, with guards on both sides that show writes beyond them.
pub struct Buffer<T>(Vec<Cell<T>>);

const GUARD: usize = 64;

impl<T: Stored> Buffer<T> {
    /// Copies of `values`, rounded.
    pub fn rounded(values: &[f32]) -> Self {
        Self::new(&values.iter().map(|&x| T::from_f32(x)).collect::<Vec<T>>())
    }

    /// The numbers now, as `f32`.
    ///
    /// # Panics
    /// As [`Buffer::values`].
    pub fn widened(&self) -> Vec<f32> {
        self.values().into_iter().map(T::to_f32).collect()
    }
}

impl<T: Copy + From<u8> + PartialEq> Buffer<T> {
    /// A copy of `values`.
    pub fn new(values: &[T]) -> Self {
        let guard = [T::from(0xA5); GUARD];
        let all = guard.iter().chain(values).chain(&guard);
        Self(all.copied().map(Cell::new).collect())
    }

    /// `length` times a number that no kernel leaves behind.
    pub fn unset(length: usize) -> Self {
        Self::new(&vec![T::from(0x5A); length])
    }

    /// The first number, as a kernel takes it.
    pub fn pointer<P>(&self) -> *mut P {
        self.0[GUARD..].as_ptr().cast_mut().cast()
    }

    /// The numbers now.
    ///
    /// # Panics
    /// If something was written beyond them.
    pub fn values(&self) -> Vec<T> {
        let all: Vec<T> = self.0.iter().map(Cell::get).collect();
        let (values, end) = all[GUARD..].split_at(all.len() - 2 * GUARD);
        let guards = all[..GUARD].iter().chain(end);
        assert!(
            guards.copied().all(|x| x == T::from(0xA5)),
            "a kernel wrote beyond its memory"
        );
        values.to_vec()
    }
}
