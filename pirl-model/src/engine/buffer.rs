//! Memory that outlives a step: fresh memory costs a page fault every 4 KiB, which on small networks
//! takes longer than the arithmetic.
//!
//! A step takes and returns buffers of a hundred sizes, more or less like a stack, so an arena that
//! splits and joins ranges of a few large chunks holds little more than the most that is ever in
//! use at once. Lists of buffers by size were tried and held half as much again, or dropped and
//! faulted in most of it every step.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ops::element::Plain;

/// Buffers begin at multiples of this many bytes: a cache line.
const ALIGN: usize = 64;
/// The least and the most bytes of a chunk, unless a single buffer needs more.
const CHUNK: (usize, usize) = (1 << 20, 1 << 28);

/// Memory from which buffers are taken.
#[derive(Debug, Default)]
pub(crate) struct Arena(Mutex<Vec<Chunk>>);

/// One allocation, and which ranges of it are free.
#[derive(Debug)]
struct Chunk {
    memory: NonNull<u8>,
    size: usize,
    /// Length by start, both in bytes; no two ranges touch.
    free: BTreeMap<usize, usize>,
}

// SAFETY: the memory belongs to the chunk alone; buffers in it are disjoint.
unsafe impl Send for Chunk {}

impl Chunk {
    fn new(size: usize) -> Self {
        let layout = Self::layout(size);
        // SAFETY: the size is not 0, as the caller rounds it up to at least `CHUNK.0`.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) });
        Self {
            memory: memory.unwrap_or_else(|| handle_alloc_error(layout)),
            size,
            free: BTreeMap::from([(0, size)]),
        }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, ALIGN).expect("a buffer below half the address space")
    }

    fn is_unused(&self) -> bool {
        self.free.get(&0) == Some(&self.size)
    }

    /// Marks the first `size` bytes of the free range at `start` as used.
    fn split(&mut self, start: usize, size: usize) -> NonNull<u8> {
        if let Some(room) = self.free.remove(&start)
            && room > size
        {
            self.free.insert(start + size, room - size);
        }
        // SAFETY: free ranges lie within the chunk.
        unsafe { self.memory.add(start) }
    }

    /// Marks a range as free and joins it with its neighbours.
    fn join(&mut self, mut start: usize, mut size: usize) {
        if let Some(next) = self.free.remove(&(start + size)) {
            size += next;
        }
        if let Some((&before, &room)) = self.free.range(..start).next_back()
            && before + room == start
        {
            self.free.remove(&before);
            (start, size) = (before, size + room);
        }
        self.free.insert(start, size);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout. Every buffer holds the arena, and the arena
        // gives up only chunks that no buffer is in.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout(self.size)) }
    }
}

impl Arena {
    /// A buffer of `len` entries with unspecified contents.
    pub(crate) fn take<T: Plain>(self: &Arc<Self>, len: usize) -> Buffer<T> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.max(1).checked_next_multiple_of(ALIGN))
            .expect("a buffer below half the address space");
        let mut chunks = self.lock();
        // The smallest range that is large enough.
        let best = (0..chunks.len())
            .flat_map(|chunk| chunks[chunk].free.iter().map(move |(&s, &r)| (r, chunk, s)))
            .filter(|&(room, _, _)| room >= bytes)
            .min();
        let memory = match best {
            Some((_, chunk, start)) => chunks[chunk].split(start, bytes),
            None => {
                // What is kept but too small makes room.
                chunks.retain(|chunk| !chunk.is_unused());
                let held: usize = chunks.iter().map(|chunk| chunk.size).sum();
                let mut chunk = Chunk::new(bytes.max(held.clamp(CHUNK.0, CHUNK.1)));
                let memory = chunk.split(0, bytes);
                chunks.push(chunk);
                memory
            }
        };
        Buffer {
            memory: memory.cast(),
            len,
            bytes,
            arena: Arc::clone(self),
            numbers: PhantomData,
        }
    }

    fn give_back(&self, memory: NonNull<u8>, bytes: usize) {
        let address = memory.as_ptr() as usize;
        for chunk in self.lock().iter_mut() {
            let start = address.wrapping_sub(chunk.memory.as_ptr() as usize);
            if start < chunk.size {
                return chunk.join(start, bytes);
            }
        }
    }

    // The lists are whole between any two calls that can panic.
    fn lock(&self) -> MutexGuard<'_, Vec<Chunk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that returns to its arena when dropped.
#[derive(Debug)]
pub(crate) struct Buffer<T: Plain> {
    memory: NonNull<T>,
    len: usize,
    /// Taken from the arena.
    bytes: usize,
    arena: Arc<Arena>,
    numbers: PhantomData<T>,
}

// SAFETY: a buffer owns its range as a `Vec` owns its memory.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the range is this buffer's alone and lives as long as the arena it holds; it is
        // aligned, it was zeroed when allocated, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.arena.give_back(self.memory.cast(), self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(arena: &Arena) -> usize {
        arena.lock().iter().map(|chunk| chunk.size).sum()
    }

    #[test]
    fn a_dropped_buffer_serves_the_next_request() {
        let arena = Arc::new(Arena::default());
        let mut first = arena.take::<f32>(100);
        first.fill(7.0);
        let address = first.as_ptr();
        drop(first);
        let second = arena.take::<f32>(90);
        assert_eq!((second.as_ptr(), second.len()), (address, 90));
        let third = arena.take::<u32>(100);
        assert_ne!(third.as_ptr().cast(), address);
    }

    #[test]
    fn buffers_never_overlap_and_their_ranges_join_again() {
        let arena = Arc::new(Arena::default());
        let mut live: Vec<Buffer<u32>> = Vec::new();
        for round in 0..2000u32 {
            let random = benches::formula(1, round).abs();
            if live.len() > 30 || (!live.is_empty() && random < 0.4) {
                let gone = live.remove((random * 1e6) as usize % live.len());
                assert!(gone.iter().all(|&x| x == gone[0]));
            } else {
                let mut buffer = arena.take((random * 5e4) as usize + 1);
                assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
                buffer.fill(round);
                live.push(buffer);
            }
        }
        let most: usize = 31 * 4 * 50_000;
        assert!(held(&arena) < 2 * most, "{}", held(&arena));
        live.clear();
        assert!(arena.lock().iter().all(Chunk::is_unused));
    }

    #[test]
    fn an_unused_chunk_makes_room_for_a_larger_one() {
        let arena = Arc::new(Arena::default());
        drop(arena.take::<f32>(10));
        drop(arena.take::<f32>(CHUNK.0));
        assert_eq!(held(&arena), 4 * CHUNK.0);
        assert!(arena.take::<f32>(0).is_empty());
    }

    #[test]
    fn a_buffer_outlives_the_handle_it_was_taken_from() {
        let arena = Arc::new(Arena::default());
        let mut buffer = arena.take::<f32>(4);
        drop(arena);
        buffer.fill(1.0);
        assert_eq!(*buffer, [1.0; 4]);
    }
}
