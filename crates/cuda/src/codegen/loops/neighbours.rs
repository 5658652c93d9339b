//! How the elements of a run lie in an array, as far as is known before a kernel runs.
//!
//! What is known is said in the text. A choice between two ways of reading that is left to the kernel costs more than the
//! choice: elements of two bytes are taken out of the words that were read within each way, so that a thread waits for one
//! array before it asks for the next.

use tilewright_plan::{Buffer, Place, View};

/// How the elements of a run lie in an array.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Neighbours {
    /// All are one element.
    Same,
    /// Side by side.
    Packed(Aligned),
    /// So many elements apart as the kernel is told.
    Apart,
}

/// Whether runs that lie side by side begin where the whole run can be read at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Aligned {
    Always,
    /// All do if the array does.
    AsTheArray,
    /// Each for itself.
    Perhaps,
}

impl Neighbours {
    /// Of runs of `run` elements along an axis of a view; `None` where there is only one.
    pub fn of(view: &View, axis: Option<usize>, run: usize, extents: &[usize], buffers: &[Buffer]) -> Self {
        let Some(axis) = axis else { return Neighbours::Same };
        match view.strides[axis] {
            0 => return Neighbours::Same,
            1 => {}
            _ => return Neighbours::Apart,
        }
        let even = |distance: isize| distance % run as isize == 0;
        let others = (0..extents.len()).filter(|&of| of != axis && extents[of] > 1);
        if !even(view.offset) || !others.map(|of| view.strides[of]).all(even) {
            return Neighbours::Packed(Aligned::Perhaps);
        }
        Neighbours::Packed(match buffers[view.buffer.0].place {
            Place::Constant(_) | Place::Arena(_) => Aligned::Always,
            Place::Input(_) | Place::Output(_) => Aligned::AsTheArray,
        })
    }
}

/// A run as it is named in the text.
pub(super) struct Run<'a> {
    /// The array, and what is read of it.
    pub name: &'a str,
    /// Which of several runs of it, as an index.
    pub held: &'a str,
    /// Where the run begins.
    pub at: String,
    /// The axis that it lies along.
    pub axis: Option<usize>,
}

impl Run<'_> {
    fn values(&self) -> String {
        format!("{}{}", self.name, self.held)
    }

    fn first(&self) -> String {
        format!("p.{} + ({})", self.name, self.at)
    }

    fn stride(&self) -> String {
        self.axis.map_or("0".into(), |axis| format!("p.{}_strides[{axis}]", self.name))
    }

    /// The call that reads it.
    pub fn load(&self, neighbours: Neighbours) -> String {
        match neighbours {
            Neighbours::Same => format!("load_same({}, {})", self.values(), self.first()),
            Neighbours::Packed(aligned) => self.packed("load_packed", aligned),
            Neighbours::Apart => self.apart("load_apart"),
        }
    }

    /// The call that reads what there is of it, of an array that has the positions from `low` up to `high` only.
    pub fn load_part(&self, axis: usize, low: &str, high: &str) -> String {
        let (values, first, stride) = (self.values(), self.first(), self.stride());
        format!("load_part({values}, {first}, {stride}, count, axis_{axis}, {low}, {high})")
    }

    /// The call that writes it.
    pub fn store(&self, neighbours: Neighbours) -> String {
        match neighbours {
            Neighbours::Packed(aligned) => self.packed("store_packed", aligned),
            Neighbours::Same | Neighbours::Apart => self.apart("store_apart"),
        }
    }

    fn packed(&self, function: &str, aligned: Aligned) -> String {
        let (values, first) = (self.values(), self.first());
        let aligned = match aligned {
            Aligned::Always => "true".into(),
            Aligned::AsTheArray => format!("is_aligned<RUN>(p.{})", self.name),
            Aligned::Perhaps => format!("is_aligned<RUN>({first})"),
        };
        format!("{function}({values}, {first}, count, {aligned})")
    }

    fn apart(&self, function: &str) -> String {
        format!("{function}({}, {}, {}, count)", self.values(), self.first(), self.stride())
    }
}

#[cfg(test)]
mod tests {
    use tilewright_ir::DType;
    use tilewright_plan::BufferId;

    use super::*;

    #[test]
    fn runs_are_aligned_where_every_step_is() {
        let buffer = |place| Buffer { dtype: DType::F32, elements: 64, place };
        let buffers = [buffer(Place::Arena(64)), buffer(Place::Input(0))];
        let of = |number, offset, strides: &[isize]| {
            let view = View { buffer: BufferId(number), offset, strides: strides.to_vec() };
            Neighbours::of(&view, Some(1), 4, &[3, 8], &buffers)
        };
        assert_eq!(of(0, 0, &[8, 1]), Neighbours::Packed(Aligned::Always));
        assert_eq!(of(0, 4, &[-8, 1]), Neighbours::Packed(Aligned::Always));
        assert_eq!(of(1, 0, &[8, 1]), Neighbours::Packed(Aligned::AsTheArray));
        assert_eq!(of(0, 1, &[8, 1]), Neighbours::Packed(Aligned::Perhaps));
        assert_eq!(of(0, 0, &[9, 1]), Neighbours::Packed(Aligned::Perhaps));
        assert_eq!(of(0, 0, &[1, 0]), Neighbours::Same);
        assert_eq!(of(0, 0, &[1, 3]), Neighbours::Apart);
        assert_eq!(of(0, 0, &[1, -1]), Neighbours::Apart);
    }
}
