//! A reader of the pickles inside PyTorch's checkpoints that runs nothing.
//!
//! Python's own reader calls whatever functions a pickle names. This one knows what state dicts are
//! made of (dictionaries, numbers, text, tensors) and a few inert classes that checkpoints carry
//! beside them, whose contents it forgets; a pickle that names anything else is refused.

mod object;
mod reader;

use object::{Id, Object, Result};
use reader::Reader;

pub(super) use object::{Storage, TensorView};

/// A pickle, read.
#[derive(Debug)]
pub(super) struct Pickle {
    objects: Vec<Object>,
    root: Id,
    /// Its length, bytes.
    pub(super) len: usize,
}

impl Pickle {
    /// Reads the pickle that `bytes` begin with.
    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let root = reader.run()?;
        Ok(Self {
            objects: reader.objects,
            root,
            len: reader.at,
        })
    }

    /// The tensors of nested dictionaries, lists and tuples, by their keys joined by dots.
    pub(super) fn tensors(&self) -> Result<Vec<(String, &TensorView)>> {
        let mut found = Vec::new();
        self.walk(self.root, "", 0, &mut 0, &mut found)?;
        Ok(found)
    }

    /// Every storage that a tensor or the pickle itself names.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.objects.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    /// The texts of a list.
    pub(super) fn texts(&self) -> Option<Vec<&str>> {
        let Object::List(items) = self.objects.get(self.root)? else {
            return None;
        };
        let text = |id: &Id| match self.objects.get(*id) {
            Some(Object::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        items.iter().map(text).collect()
    }

    fn walk<'a>(
        &'a self,
        id: Id,
        name: &str,
        depth: usize,
        visits: &mut usize,
        found: &mut Vec<(String, &'a TensorView)>,
    ) -> Result<()> {
        // Objects may hold themselves, and each other many times over.
        const DEEPEST: usize = 24;
        const MOST: usize = 1 << 24;
        *visits += 1;
        if depth > DEEPEST || *visits > MOST {
            return Err(format!("{name:?} is nested too deeply or holds itself"));
        }
        let join = |key: &str| match name {
            "" => key.to_owned(),
            name => format!("{name}.{key}"),
        };
        match &self.objects[id] {
            Object::Tensor(tensor) => found.push((name.to_owned(), tensor)),
            Object::Dict(entries) => {
                for &(key, value) in entries {
                    let key = match &self.objects[key] {
                        Object::Text(text) => join(text),
                        Object::Int(number) => join(&number.to_string()),
                        _ => continue, // no name, so no part of a state dict
                    };
                    self.walk(value, &key, depth + 1, visits, found)?;
                }
            }
            Object::List(items) | Object::Tuple(items) => {
                for (i, &item) in items.iter().enumerate() {
                    self.walk(item, &join(&i.to_string()), depth + 1, visits, found)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pickles by hand, as `pickletools.dis` shows them.
    fn reason(bytes: &[u8]) -> String {
        Pickle::read(bytes).unwrap_err()
    }

    #[test]
    fn a_call_is_refused_by_name() {
        let text = reason(b"cposix\nsystem\n(X\x02\x00\x00\x00lstR.");
        assert!(
            text.contains("posix.system") && text.contains("nothing was run"),
            "{text}"
        );
        // By way of the stack, as protocol 4 does.
        let text = reason(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.");
        assert!(text.contains("builtins.eval"), "{text}");
    }

    #[test]
    fn what_is_recalled_is_the_same_object() {
        // A list filled after it was remembered, and recalled after that.
        let pickle = Pickle::read(b"]q\x00(X\x01\x00\x00\x00aX\x01\x00\x00\x00beh\x00.").unwrap();
        assert_eq!(pickle.texts().unwrap(), ["a", "b"]);
    }

    #[test]
    fn lists_that_hold_each_other_many_times_over_end() {
        // Each holds the one before 16 times: 16^20 paths, and no tensor at the end of any.
        let mut bytes = b"]q\x00".to_vec();
        for level in 0..20 {
            bytes.extend(b"](");
            bytes.extend([b'h', level].repeat(16));
            bytes.extend([b'e', b'q', level + 1]);
        }
        bytes.push(b'.');
        let pickle = Pickle::read(&bytes).unwrap();
        assert!(pickle.tensors().unwrap_err().contains("nested too deeply"));
    }

    #[test]
    fn nothing_that_a_file_says_panics() {
        for bytes in [
            &b""[..],
            b".",
            b"(.",
            b"R.",
            b"(0.",
            b"t.",
            b"X\xff\xff\xff\xff.",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
            b"\x8b\xff\xff\xff\xff.",
            b"cno newline",
            b"h\x07.",
            b"}K\x01s.",
            b")Q.",
            b"\xfe.",
            b"K\x01K\x02R.",
        ] {
            assert!(Pickle::read(bytes).is_err(), "{bytes:?}");
        }
        // A list that holds itself.
        let pickle = Pickle::read(b"]q\x00h\x00a.").unwrap();
        assert!(pickle.tensors().unwrap_err().contains("holds itself"));
    }

    #[test]
    fn a_view_must_lie_in_its_storage() {
        let view = |offset, shape: &[usize], stride: &[usize]| {
            let storage = Storage {
                key: "0".to_owned(),
                kind: object::KINDS[0],
                len: 10,
            };
            let (shape, stride) = (shape.to_vec(), stride.to_vec());
            TensorView {
                storage,
                offset,
                shape,
                stride,
            }
            .check()
        };
        assert!(view(0, &[2, 5], &[5, 1]) && view(9, &[], &[]) && view(0, &[100], &[0]));
        assert!(view(99, &[0], &[1]));
        assert!(!view(1, &[2, 5], &[5, 1]) && !view(10, &[], &[]) && !view(0, &[2], &[]));
        assert!(!view(0, &[usize::MAX, 2], &[1, 1]) && !view(0, &[3], &[usize::MAX]));
    }
}
