//! What a pickle is made of.

use candle_core::DType;

/// The numbers of one or more tensors, outside the pickle.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::weights) struct Storage {
    /// Its name in the file.
    pub(in crate::weights) key: String,
    pub(in crate::weights) kind: Kind,
    /// How many numbers it has.
    pub(in crate::weights) len: usize,
}

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::weights) struct Kind {
    /// PyTorch's name of it, such as `FloatStorage`.
    pub(in crate::weights) name: &'static str,
    /// Bytes of a number.
    pub(in crate::weights) size: usize,
    /// `None`: Candle has no such type.
    pub(in crate::weights) dtype: Option<DType>,
}

pub(super) const KINDS: [Kind; 12] = [
    kind("FloatStorage", 4, Some(DType::F32)),
    kind("DoubleStorage", 8, Some(DType::F64)),
    kind("HalfStorage", 2, Some(DType::F16)),
    kind("BFloat16Storage", 2, Some(DType::BF16)),
    kind("LongStorage", 8, Some(DType::I64)),
    kind("IntStorage", 4, Some(DType::I32)),
    kind("ShortStorage", 2, Some(DType::I16)),
    kind("ByteStorage", 1, Some(DType::U8)),
    kind("BoolStorage", 1, Some(DType::U8)),
    kind("CharStorage", 1, None),
    kind("ComplexFloatStorage", 8, None),
    kind("ComplexDoubleStorage", 16, None),
];

const fn kind(name: &'static str, size: usize, dtype: Option<DType>) -> Kind {
    Kind { name, size, dtype }
}

/// A tensor as a pickle describes it: a view of a storage, all measures in numbers.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::weights) struct TensorView {
    pub(in crate::weights) storage: Storage,
    pub(in crate::weights) offset: usize,
    pub(in crate::weights) shape: Vec<usize>,
    pub(in crate::weights) stride: Vec<usize>,
}

/// The position of an object among those of a pickle.
pub(super) type Id = usize;

/// What the instructions of a pickle make.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Callable(Callable),
    Storage(Storage),
    Tensor(TensorView),
    /// Something that is no part of a state dict, or an instance of an inert class.
    Other,
}

/// What a pickle may name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Callable {
    Dict,
    Size,
    RebuildTensor,
    RebuildParameter,
    Storage(Kind),
    Inert,
}

impl Callable {
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict" | "defaultdict") => Self::Dict,
            ("torch", "Size") => Self::Size,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch" | "torch.cuda", _) if KINDS.iter().any(|kind| kind.name == name) => {
                Self::Storage(*KINDS.iter().find(|kind| kind.name == name)?)
            }
            // Data types, such as `torch.float32`, and devices.
            ("torch", "device" | "float16" | "float32" | "float64" | "bfloat16" | "int64")
            // What options and scores are kept in.
            | ("argparse", "Namespace")
            | ("collections", "Counter")
            | ("builtins" | "__builtin__", "set" | "frozenset" | "dict" | "list" | "int" | "float")
            | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
            | ("numpy", "dtype" | "ndarray")
            | ("_codecs", "encode")
            | ("pathlib", "Path" | "PosixPath" | "PurePosixPath") => Self::Inert,
            _ => return None,
        })
    }
}

impl TensorView {
    /// Whether every number lies inside the storage, and their count is one memory could hold.
    pub(super) fn check(&self) -> bool {
        let elements = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let Some(elements) =
            elements.filter(|&n| n <= isize::MAX as usize / self.storage.kind.size)
        else {
            return false;
        };
        let steps = self.shape.iter().zip(&self.stride);
        let last = steps
            .map(|(&d, &s)| d.saturating_sub(1).checked_mul(s))
            .try_fold(self.offset, |at, step| at.checked_add(step?));
        self.shape.len() == self.stride.len()
            && (elements == 0 || last.is_some_and(|last| last < self.storage.len))
    }
}

/// A result, or why a pickle was not read, in words.
pub(super) type Result<T> = std::result::Result<T, String>;
