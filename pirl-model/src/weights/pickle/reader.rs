//! The stack machine that a pickle is written for.

use std::collections::HashMap;

use super::object::{Callable, Id, Object, Result, Storage, TensorView};

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// How far it has read, bytes.
    pub(super) at: usize,
    pub(super) objects: Vec<Object>,
    stack: Vec<Id>,
    /// Lengths of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// Follows the instructions to the last; the object they leave.
    pub(super) fn run(&mut self) -> Result<Id> {
        loop {
            let at = self.at;
            let code = self.byte()?;
            match code {
                b'.' => return self.pop(),
                code => self
                    .step(code)
                    .map_err(|reason| format!("its pickle, byte {at}: {reason}"))?,
            }
        }
    }

    /// One instruction; they are listed in CPython's `Lib/pickletools.py`.
    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            0x80 => self.take(1).map(drop), // PROTO
            0x95 => self.take(8).map(drop), // FRAME
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            // Names of objects to come back to.
            b'q' => {
                let key = self.number(1)?;
                self.remember(key)
            }
            b'r' => {
                let key = self.number(4)?;
                self.remember(key)
            }
            0x94 => self.remember(self.memo.len() as u64),
            b'h' => {
                let key = self.number(1)?;
                self.recall(key)
            }
            b'j' => {
                let key = self.number(4)?;
                self.recall(key)
            }
            // Values.
            b'N' | 0x88 | 0x89 => self.push(Object::Other), // None, True, False
            b'G' => {
                self.take(8)?;
                self.push(Object::Other)
            }
            b'K' => self.integer(1),
            b'M' => self.integer(2),
            b'J' => {
                let number = self.number(4)? as u32 as i32;
                self.push(Object::Int(number.into()))
            }
            0x8a => {
                let len = self.number(1)?;
                self.long(len)
            }
            0x8b => {
                let len = self.number(4)?;
                self.long(len)
            }
            b'X' | b'T' => self.text(4), // BINUNICODE, and Python 2's BINSTRING
            0x8c | b'U' => self.text(1),
            0x8d => self.text(8),
            b'C' => self.blob(1),
            b'B' => self.blob(4),
            0x8e => self.blob(8),
            // Collections.
            b')' => self.push(Object::Tuple(Vec::new())),
            0x85 => self.tuple(1),
            0x86 => self.tuple(2),
            0x87 => self.tuple(3),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Object::Tuple(items))
            }
            b']' => self.push(Object::List(Vec::new())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Object::List(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)
            }
            0x8f => self.push(Object::Other), // EMPTY_SET
            b'}' => self.push(Object::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Object::Dict(Vec::new()))?;
                self.set_items(&items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)
            }
            // Classes, functions and what they make.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.objects[module].clone(), self.objects[name].clone()) {
                    (Object::Text(module), Object::Text(name)) => self.global(&module, &name),
                    _ => Err("a class has no name".to_owned()),
                }
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments)
            }
            // The attributes of an object: what matters of it is already there.
            b'b' => self.pop().map(drop),
            b'Q' => {
                let id = self.pop()?;
                self.persistent(id)
            }
            code => Err(format!(
                "instruction {code:#04x} is none that PyTorch writes"
            )),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        self.at = end.unwrap_or(self.at);
        taken.ok_or_else(|| "it ends too early".to_owned())
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    /// An unsigned number of `size` bytes, at most 8.
    fn number(&mut self, size: usize) -> Result<u64> {
        let bytes = self.take(size)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |n, &byte| n << 8 | u64::from(byte)))
    }

    fn length(&mut self, size: usize) -> Result<usize> {
        usize::try_from(self.number(size)?).map_err(|_| "it ends too early".to_owned())
    }

    fn line(&mut self) -> Result<String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|&byte| byte == b'\n');
        let end = end.ok_or_else(|| "it ends too early".to_owned())?;
        let line = self.take(end + 1)?;
        Ok(String::from_utf8_lossy(&line[..end]).trim_end().to_owned())
    }

    fn push(&mut self, object: Object) -> Result<()> {
        self.objects.push(object);
        self.stack.push(self.objects.len() - 1);
        Ok(())
    }

    fn integer(&mut self, size: usize) -> Result<()> {
        let number = self.number(size)?;
        self.push(Object::Int(number as i64))
    }

    /// A signed number of any length; one that no `i64` holds is not a size.
    fn long(&mut self, len: u64) -> Result<()> {
        let bytes = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        let object = match bytes.last() {
            None => Object::Int(0),
            Some(_) if bytes.len() > 8 => Object::Other,
            Some(last) => {
                let mut whole = [if last & 0x80 == 0 { 0 } else { 0xff }; 8];
                whole[..bytes.len()].copy_from_slice(bytes);
                Object::Int(i64::from_le_bytes(whole))
            }
        };
        self.push(object)
    }

    fn text(&mut self, size: usize) -> Result<()> {
        let len = self.length(size)?;
        let text = String::from_utf8_lossy(self.take(len)?).into_owned();
        self.push(Object::Text(text))
    }

    fn blob(&mut self, size: usize) -> Result<()> {
        let len = self.length(size)?;
        self.take(len)?;
        self.push(Object::Other)
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(id) if self.stack.len() >= floor => Ok(id),
            _ => Err("it takes what is not there".to_owned()),
        }
    }

    fn top(&self) -> Result<Id> {
        let top = self.stack.last().copied();
        top.ok_or_else(|| "it takes what is not there".to_owned())
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => Err("it takes what is not there".to_owned()),
        }
    }

    fn tuple(&mut self, len: usize) -> Result<()> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Object::Tuple(items))
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let id = self.memo.get(&key).copied();
        self.stack
            .push(id.ok_or_else(|| format!("it recalls {key}, which it never named"))?);
        Ok(())
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::List(list) => list.extend(items),
            Object::Other => {}
            _ => return Err("it appends to what is not a list".to_owned()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.objects[top] {
            _ if !rest.is_empty() => return Err("a key has no value".to_owned()),
            Object::Dict(entries) => entries.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Object::Other => {}
            _ => return Err("it sets an item of what is not a dictionary".to_owned()),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        match Callable::find(module, name) {
            Some(callable) => self.push(Object::Callable(callable)),
            None => Err(format!(
                "it names {module}.{name}, which is no part of a state dict; refused, and nothing \
                 was run"
            )),
        }
    }

    fn call(&mut self, callable: Id, arguments: Id) -> Result<()> {
        let Object::Callable(callable) = self.objects[callable] else {
            return Err("it calls what is not a function".to_owned());
        };
        let arguments = match &self.objects[arguments] {
            Object::Tuple(items) => items.clone(),
            _ => return Err("it calls a function without a tuple of arguments".to_owned()),
        };
        let object = match callable {
            Callable::Dict => Object::Dict(self.pairs(&arguments)),
            Callable::Size => match arguments.first() {
                Some(&sizes) => self.objects[sizes].clone(),
                None => Object::Tuple(Vec::new()),
            },
            Callable::RebuildTensor => Object::Tensor(self.rebuild(&arguments)?),
            Callable::RebuildParameter => match arguments.first() {
                Some(&tensor) => self.objects[tensor].clone(),
                None => return Err("a parameter has no tensor".to_owned()),
            },
            Callable::Storage(_) | Callable::Inert => Object::Other,
        };
        self.push(object)
    }

    /// The entries that `OrderedDict` is called with: a list of pairs, in pickles of Python 2.
    fn pairs(&self, arguments: &[Id]) -> Vec<(Id, Id)> {
        let Some(Object::List(items)) = arguments.first().map(|&id| &self.objects[id]) else {
            return Vec::new();
        };
        let pair = |id: &Id| match &self.objects[*id] {
            Object::List(pair) | Object::Tuple(pair) => match pair[..] {
                [key, value] => Some((key, value)),
                _ => None,
            },
            _ => None,
        };
        items.iter().filter_map(pair).collect()
    }

    /// `torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, ...)`
    fn rebuild(&self, arguments: &[Id]) -> Result<TensorView> {
        let [storage, offset, shape, stride, ..] = *arguments else {
            return Err("a tensor has too few arguments".to_owned());
        };
        let Object::Storage(storage) = &self.objects[storage] else {
            return Err("a tensor has no storage".to_owned());
        };
        let view = TensorView {
            storage: storage.clone(),
            offset: self.size(offset)?,
            shape: self.sizes(shape)?,
            stride: self.sizes(stride)?,
        };
        match view.check() {
            true => Ok(view),
            false => Err(format!(
                "a tensor of shape {:?}, strides {:?}, from {} on, lies outside its storage of {} \
                 numbers",
                view.shape, view.stride, view.offset, view.storage.len
            )),
        }
    }

    fn size(&self, id: Id) -> Result<usize> {
        match self.objects[id] {
            Object::Int(number) => usize::try_from(number).ok(),
            _ => None,
        }
        .ok_or_else(|| "a size is not a number".to_owned())
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        match &self.objects[id] {
            Object::Tuple(items) | Object::List(items) => {
                items.iter().map(|&item| self.size(item)).collect()
            }
            _ => Err("a shape is not a tuple".to_owned()),
        }
    }

    /// `("storage", type, key, device, length)`, and in the old format what view of another it is
    fn persistent(&mut self, id: Id) -> Result<()> {
        let unknown = || Err("it refers to something that is not a storage".to_owned());
        let Object::Tuple(items) = &self.objects[id] else {
            return unknown();
        };
        let (tag, kind, key, len) = match items[..] {
            [tag, kind, key, _, len] => (tag, kind, key, len),
            [tag, kind, key, _, len, view] if matches!(self.objects[view], Object::Other) => {
                (tag, kind, key, len)
            }
            _ => return unknown(),
        };
        let (Object::Text(tag), Object::Callable(Callable::Storage(kind))) =
            (&self.objects[tag], &self.objects[kind])
        else {
            return unknown();
        };
        let Object::Text(key) = &self.objects[key] else {
            return unknown();
        };
        if tag != "storage" {
            return unknown();
        }
        let storage = Storage {
            key: key.clone(),
            kind: *kind,
            len: self.size(len)?,
        };
        self.push(Object::Storage(storage))
    }
}
