//! Memory: what a run's buffers are, checked looks at them, and aligned scratch.

use std::alloc::{Layout, dealloc};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use tilewright_ir::{DType, Error, ErrorKind, Result};
use tilewright_plan::{Buffer, Place, Plan, Table, View};

/// Bytes that every allocation is aligned to: a cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

/// The buffers of one run. Kernels run one after the other; within one, threads write disjoint elements.
pub struct Memory<'a> {
    buffers: Vec<Span>,
    lifetime: PhantomData<&'a mut [u8]>,
}

#[derive(Clone, Copy)]
struct Span {
    data: *mut u8,
    dtype: DType,
    elements: usize,
    writable: bool,
}

// SAFETY: a `Span` is only dereferenced by kernels, through an `Array`; see there.
unsafe impl Send for Memory<'_> {}
// SAFETY: as above.
unsafe impl Sync for Memory<'_> {}

/// A strided array inside one buffer, all of whose elements are known to be there and aligned.
///
/// Whoever reads or writes through `data` vouches for staying within `extents`, and for no other thread
/// writing the same elements at that time. Elements may be read and written through several arrays, so no
/// reference to them may be held while another array of the same buffer is written.
#[derive(Clone, Debug)]
pub struct Array {
    /// The element at the origin.
    pub data: *mut u8,
    /// Element type.
    pub dtype: DType,
    /// Extent of each axis.
    pub extents: Vec<usize>,
    /// Elements between neighbours along each axis.
    pub strides: Vec<isize>,
}

// SAFETY: see the contract above; the pointer is good for the whole run.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

impl Array {
    /// The element at a position, as a pointer.
    ///
    /// # Panics
    /// Where the position has another rank.
    pub fn at<T>(&self, position: &[usize]) -> *mut T {
        assert_eq!(position.len(), self.strides.len());
        debug_assert_eq!(size_of::<T>(), self.dtype.size());
        let offset: isize = position.iter().zip(&self.strides).map(|(&i, &s)| i as isize * s).sum();
        self.data.wrapping_offset(offset * self.dtype.size() as isize).cast()
    }
}

impl<'a> Memory<'a> {
    /// The buffers of `plan`, with its inputs, outputs and arena.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where an input or output is missing or too short, [`ErrorKind::Layout`] where
    /// one is not aligned to its elements, [`ErrorKind::Invariant`] where the plan is at fault.
    pub fn new(
        plan: &'a Plan,
        inputs: &'a [&[u8]],
        outputs: &'a mut [&mut [u8]],
        arena: &'a mut [u8],
    ) -> Result<Memory<'a>> {
        let outputs: Vec<(*mut u8, usize)> =
            outputs.iter_mut().map(|bytes| (bytes.as_mut_ptr(), bytes.len())).collect();
        let arena = (arena.as_mut_ptr(), arena.len());
        let span = |buffer: &Buffer| -> Result<Span> {
            let needed = buffer
                .elements
                .checked_mul(buffer.dtype.size())
                .ok_or_else(|| broken("a buffer is larger than memory"))?;
            let (name, data, found, writable) = match &buffer.place {
                Place::Input(i) => {
                    let bytes = inputs.get(*i).ok_or_else(|| missing("input", *i))?;
                    (format!("input {i}"), bytes.as_ptr().cast_mut(), bytes.len(), false)
                }
                Place::Output(i) => {
                    let (data, found) = *outputs.get(*i).ok_or_else(|| missing("output", *i))?;
                    (format!("output {i}"), data, found, true)
                }
                Place::Constant(literal) => {
                    let bytes = literal.bytes();
                    ("a constant".into(), bytes.as_ptr().cast_mut(), bytes.len(), false)
                }
                Place::Arena(start) => {
                    if *start > arena.1 {
                        return Err(broken("a buffer starts outside the arena"));
                    }
                    ("the arena".into(), arena.0.wrapping_add(*start), arena.1 - start, true)
                }
            };
            if found < needed {
                return Err(Error::shape(name, format!("{needed} bytes"), format!("{found} bytes")));
            }
            if needed > 0 && data.addr() % buffer.dtype.size() != 0 {
                return Err(Error::new(ErrorKind::Layout {
                    argument: name,
                    message: format!("not aligned to its elements, {}", buffer.dtype),
                }));
            }
            Ok(Span { data, dtype: buffer.dtype, elements: buffer.elements, writable })
        };
        let buffers = plan.buffers.iter().map(span).collect::<Result<_>>()?;
        Ok(Memory { buffers, lifetime: PhantomData })
    }

    /// A look at a buffer over a space of the given extents, for reading.
    ///
    /// # Errors
    /// [`ErrorKind::Invariant`] where the view leaves its buffer or has another type: a fault of the plan.
    pub fn read(&self, view: &View, dtype: DType, extents: &[usize]) -> Result<Array> {
        let span = self
            .buffers
            .get(view.buffer.0)
            .ok_or_else(|| broken("a view names a buffer that is not there"))?;
        if span.dtype != dtype {
            return Err(broken(format!("a view as {dtype} of a buffer of {}", span.dtype)));
        }
        if view.strides.len() != extents.len() {
            return Err(broken(format!("{} strides for {} axes", view.strides.len(), extents.len())));
        }
        if !extents.contains(&0) && !inside(view, extents, span.elements) {
            return Err(broken(format!("a view of {extents:?} leaves its buffer: {view:?}")));
        }
        let data = span.data.wrapping_offset(view.offset.wrapping_mul(dtype.size() as isize));
        Ok(Array { data, dtype, extents: extents.to_vec(), strides: view.strides.clone() })
    }

    /// As [`Memory::read`], for writing.
    ///
    /// # Errors
    /// As [`Memory::read`]; and where the buffer is an input or a constant.
    pub fn write(&self, view: &View, dtype: DType, extents: &[usize]) -> Result<Array> {
        let array = self.read(view, dtype, extents)?;
        if !self.buffers[view.buffer.0].writable {
            return Err(broken("a kernel writes an input"));
        }
        Ok(array)
    }

    /// The arrays that a kernel's programs read.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn tables(&self, tables: &[Table]) -> Result<Vec<Array>> {
        tables.iter().map(|table| self.read(&table.view, table.dtype, &table.shape)).collect()
    }
}

/// Whether all elements of a view over `extents` (none 0) are in `0..elements`.
fn inside(view: &View, extents: &[usize], elements: usize) -> bool {
    let (mut least, mut greatest) = (view.offset as i128, view.offset as i128);
    for (&extent, &stride) in extents.iter().zip(&view.strides) {
        let reach = (extent as i128 - 1) * stride as i128;
        least += reach.min(0);
        greatest += reach.max(0);
    }
    least >= 0 && greatest < elements as i128
}

fn missing(what: &str, number: usize) -> Error {
    Error::shape(format!("{what} {number}"), "one more argument", "none")
}

/// A fault of the plan, not of its user.
pub(crate) fn broken(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invariant { invariant: 0, message: message.into() })
}

/// An aligned allocation of plain numbers that can fail.
pub struct Aligned<T: Number> {
    allocation: *mut u8,
    /// The first multiple of its alignment in the allocation.
    data: *mut T,
    length: usize,
}

/// A type of which every bit pattern is a value.
///
/// # Safety
/// Only for such types, of alignment at most [`ALIGNMENT`].
pub unsafe trait Number: Copy + Send + Sync + 'static {}

// SAFETY (all): plain numbers.
unsafe impl Number for u8 {}
unsafe impl Number for u16 {}
unsafe impl Number for i32 {}
unsafe impl Number for u32 {}
unsafe impl Number for i64 {}
unsafe impl Number for u64 {}
unsafe impl Number for f32 {}
unsafe impl Number for f64 {}

// SAFETY: it owns its memory, as a `Vec` does.
unsafe impl<T: Number> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Number> Sync for Aligned<T> {}

impl<T: Number> Aligned<T> {
    /// `length` zeros.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn new(length: usize) -> Result<Aligned<T>> {
        let (array, fresh) = Aligned::<T>::reused_or_fresh(length)?;
        if !fresh {
            // SAFETY: `length` numbers are this array's, and numbers may be zero bytes.
            unsafe { array.data.write_bytes(0, length) };
        }
        Ok(array)
    }

    /// `length` numbers of which each is written before it is read: to clear them would take as long as the work of a
    /// small call.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn scratch(length: usize) -> Result<Aligned<T>> {
        Aligned::reused_or_fresh(length).map(|(array, _)| array)
    }

    /// `length` numbers, and whether they are fresh: zeros, rather than what is left of another array.
    fn reused_or_fresh(length: usize) -> Result<(Aligned<T>, bool)> {
        let Some(layout) = Aligned::<T>::layout(length) else {
            return Err(out_of_memory(length.saturating_mul(size_of::<T>())));
        };
        let place = |allocation: *mut u8| {
            allocation.map_addr(|address| address.next_multiple_of(alignment::<T>(length)))
        };
        if let Some(allocation) = kept::take(layout) {
            let data = place(allocation);
            return Ok((Aligned { allocation, data: data.cast(), length }, false));
        }
        // SAFETY: the layout is not of size 0.
        let allocation = unsafe { std::alloc::alloc_zeroed(layout) };
        if allocation.is_null() {
            return Err(out_of_memory(layout.size()));
        }
        let data = place(allocation);
        if alignment::<T>(length) == HUGE {
            ask_for_huge_pages(data, length * size_of::<T>());
        }
        Ok((Aligned { allocation, data: data.cast(), length }, true))
    }

    /// The first element, for code that shares the allocation out itself: no slice of it may be held where it
    /// is written through this.
    pub fn start(&self) -> *mut T {
        self.data
    }

    /// With room to align the numbers. To ask the allocator for alignment would have it write the zeros, also where
    /// the system gives fresh pages of them, which whoever writes first had better touch.
    fn layout(length: usize) -> Option<Layout> {
        let bytes = length.checked_mul(size_of::<T>())?.checked_add(alignment::<T>(length))?;
        Layout::from_size_align(bytes, align_of::<T>()).ok()
    }
}

/// Bytes of a huge page, and those that an array has at least to lie on such.
const HUGE: usize = 2 << 20;

/// Of an array of so many numbers.
fn alignment<T>(length: usize) -> usize {
    let large = cfg!(target_os = "linux") && length.saturating_mul(size_of::<T>()) >= HUGE;
    if large { HUGE } else { ALIGNMENT }
}

/// Asks the system for large pages, of which it has to hand out fewer: to touch new memory a small page at a time takes
/// as long as much of the work on it.
fn ask_for_huge_pages(data: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        unsafe extern "C" {
            fn madvise(address: *mut std::ffi::c_void, bytes: usize, advice: i32) -> i32;
        }
        const HUGE_PAGE: i32 = 14;
        // SAFETY: advice about memory of our own, which may be ignored; `data` is the start of a page.
        unsafe { madvise(data.cast(), bytes, HUGE_PAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (data, bytes);
}

fn out_of_memory(bytes: usize) -> Error {
    Error::new(ErrorKind::OutOfMemory { bytes, device: "the CPU".into() })
}

impl<T: Number> Drop for Aligned<T> {
    fn drop(&mut self) {
        let layout = Aligned::<T>::layout(self.length).expect("it was allocated with this layout");
        if !kept::keep(self.allocation, layout) {
            // SAFETY: as it says.
            unsafe { dealloc(self.allocation, layout) }
        }
    }
}

/// Allocations that were given up and may be asked for again, as each call of a program asks for the same. An allocator
/// gives large ones back to the system at once, and fresh memory costs a fault for each page: up to half the time of a
/// small model's attention.
mod kept {
    use std::alloc::{Layout, dealloc};
    use std::collections::VecDeque;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Bytes of an allocation that is kept: smaller ones the allocator keeps, larger ones are few.
    const SIZES: std::ops::Range<usize> = 32 << 10..32 << 20;

    /// Bytes of all that are kept, at most: the oldest go.
    const MOST: usize = 64 << 20;

    struct Kept {
        /// Address and layout, the oldest first.
        allocations: VecDeque<(usize, Layout)>,
        bytes: usize,
    }

    static KEPT: Mutex<Kept> = Mutex::new(Kept { allocations: VecDeque::new(), bytes: 0 });

    fn lock() -> MutexGuard<'static, Kept> {
        KEPT.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An allocation of this layout, with anything in it.
    pub fn take(layout: Layout) -> Option<*mut u8> {
        if !SIZES.contains(&layout.size()) {
            return None;
        }
        let mut kept = lock();
        let place = kept.allocations.iter().rposition(|(_, of)| *of == layout)?;
        let (address, _) = kept.allocations.remove(place)?;
        kept.bytes -= layout.size();
        Some(std::ptr::with_exposed_provenance_mut(address))
    }

    /// Takes over an allocation of this layout, if it is worth keeping.
    pub fn keep(allocation: *mut u8, layout: Layout) -> bool {
        if !SIZES.contains(&layout.size()) {
            return false;
        }
        let mut kept = lock();
        kept.allocations.push_back((allocation.expose_provenance(), layout));
        kept.bytes += layout.size();
        while kept.bytes > MOST
            && let Some((address, layout)) = kept.allocations.pop_front()
        {
            kept.bytes -= layout.size();
            // SAFETY: it was allocated with this layout, and nobody else knows it.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(address), layout) }
        }
        true
    }

    #[cfg(test)]
    mod tests {
        use super::super::Aligned;

        #[test]
        fn what_is_given_up_comes_back_as_zeros() {
            // A size that no other test asks for.
            let length = (48 << 10) + 24;
            for _ in 0..3 {
                let mut array = Aligned::<f32>::new(length).unwrap();
                assert!(array.iter().all(|&x| x == 0.0));
                array.fill(1.0);
            }
        }

        #[test]
        fn no_more_is_kept_than_is_said() {
            let arrays: Vec<_> = (0..20).map(|i| Aligned::<u8>::new((5 << 20) + i).unwrap()).collect();
            drop(arrays);
            assert!(super::lock().bytes <= super::MOST);
        }
    }
}

impl<T: Number> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `length` initialised elements, owned.
        unsafe { std::slice::from_raw_parts(self.data, self.length) }
    }
}

impl<T: Number> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `length` initialised elements, owned and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.length) }
    }
}
