//! Trees of leaves: how models, optimiser states and batches go in and out of traced functions.
//!
//! A [`Tree<L>`] is a value that holds leaves of type `L` at *paths* such as `layers.3.bias`, and plain data
//! (*static*: sizes, names, numbers) that is part of its structure. [`MapLeaves`] puts other leaves in the
//! same tree, so that one generic struct `Gpt<L>` serves as `Gpt<Tensor>` in a traced function and as
//! `Gpt<Array>` outside of it. `#[derive(Tree)]` writes both.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Debug, Display, Write};

use tilewright_ir::Result;

use crate::Tensor;

/// Where a leaf stands in its tree: `layers.3.bias`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path(String);

impl Path {
    /// Calls `f` with `segment` added to this path.
    pub fn within<R>(&mut self, segment: impl Display, f: impl FnOnce(&mut Path) -> R) -> R {
        let length = self.0.len();
        let dot = if length == 0 { "" } else { "." };
        write!(self.0, "{dot}{segment}").expect("writing to a string does not fail");
        let result = f(self);
        self.0.truncate(length);
        result
    }

    /// The path as text; empty for a tree that is one leaf.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a visit of a tree meets.
pub enum Entry<'a, L> {
    /// A leaf.
    Leaf(&'a L),
    /// Structure: a length, a variant, a key, or a field that is no leaf.
    Static(&'a dyn Debug),
}

/// What is done with each entry of a visited tree.
pub type Visitor<'a, L> = dyn FnMut(&Path, Entry<'_, L>) + 'a;

/// What replaces each leaf of a mapped tree.
pub type Mapper<'a, L, M> = dyn FnMut(&Path, &L) -> Result<M> + 'a;

/// A value that holds leaves `L` at paths. See the module's opening.
pub trait Tree<L> {
    /// Meets every leaf and every piece of structure, in an order that depends on the structure only.
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>);
}

/// A tree whose leaves `L` can be replaced by leaves `M`.
pub trait MapLeaves<L, M>: Tree<L> {
    /// The same tree over `M`.
    type Output: Tree<M>;

    /// The tree with each leaf replaced, in the order of [`Tree::visit`].
    ///
    /// # Errors
    /// The first that `mapper` gives.
    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, L, M>) -> Result<Self::Output>;
}

/// A tree of traced values: what can be differentiated, optimised and scanned.
pub trait TensorTree: MapLeaves<Tensor, Tensor, Output = Self> + Sized {}

impl<T: MapLeaves<Tensor, Tensor, Output = T>> TensorTree for T {}

/// The leaves of a tree, with their paths, in order.
pub fn leaves<L: Clone, T: Tree<L> + ?Sized>(tree: &T) -> Vec<(Path, L)> {
    let mut leaves = Vec::new();
    tree.visit(&mut Path::default(), &mut |path, entry| {
        if let Entry::Leaf(leaf) = entry {
            leaves.push((path.clone(), leaf.clone()));
        }
    });
    leaves
}

/// The tree with each leaf replaced by what `f` gives for its path and itself.
///
/// # Errors
/// The first that `f` gives.
pub fn map_leaves<L, M, T: MapLeaves<L, M>>(
    tree: &T,
    mut f: impl FnMut(&Path, &L) -> Result<M>,
) -> Result<T::Output> {
    tree.map_leaves(&mut Path::default(), &mut f)
}

impl Tree<Tensor> for Tensor {
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, Tensor>) {
        visitor(path, Entry::Leaf(self));
    }
}

impl<M: Tree<M>> MapLeaves<Tensor, M> for Tensor {
    type Output = M;

    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, Tensor, M>) -> Result<M> {
        mapper(path, self)
    }
}

impl<L, T: Tree<L>> Tree<L> for &T {
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>) {
        (**self).visit(path, visitor);
    }
}

impl<L, M, T: MapLeaves<L, M>> MapLeaves<L, M> for &T {
    type Output = T::Output;

    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, L, M>) -> Result<T::Output> {
        (**self).map_leaves(path, mapper)
    }
}

impl<L, T: Tree<L>> Tree<L> for Box<T> {
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>) {
        (**self).visit(path, visitor);
    }
}

impl<L, M, T: MapLeaves<L, M>> MapLeaves<L, M> for Box<T> {
    type Output = Box<T::Output>;

    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, L, M>) -> Result<Box<T::Output>> {
        Ok(Box::new((**self).map_leaves(path, mapper)?))
    }
}

impl<L, T: Tree<L>> Tree<L> for Option<T> {
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>) {
        visitor(path, Entry::Static(&self.is_some()));
        if let Some(tree) = self {
            tree.visit(path, visitor);
        }
    }
}

impl<L, M, T: MapLeaves<L, M>> MapLeaves<L, M> for Option<T> {
    type Output = Option<T::Output>;

    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, L, M>) -> Result<Option<T::Output>> {
        self.as_ref().map(|tree| tree.map_leaves(path, mapper)).transpose()
    }
}

impl<L, T: Tree<L>> Tree<L> for Vec<T> {
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>) {
        visitor(path, Entry::Static(&self.len()));
        for (i, tree) in self.iter().enumerate() {
            path.within(i, |path| tree.visit(path, visitor));
        }
    }
}

impl<L, M, T: MapLeaves<L, M>> MapLeaves<L, M> for Vec<T> {
    type Output = Vec<T::Output>;

    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, L, M>) -> Result<Vec<T::Output>> {
        let mut mapped = Vec::with_capacity(self.len());
        for (i, tree) in self.iter().enumerate() {
            mapped.push(path.within(i, |path| tree.map_leaves(path, mapper))?);
        }
        Ok(mapped)
    }
}

impl<L, T: Tree<L>, const N: usize> Tree<L> for [T; N] {
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>) {
        for (i, tree) in self.iter().enumerate() {
            path.within(i, |path| tree.visit(path, visitor));
        }
    }
}

impl<L, M, T: MapLeaves<L, M>, const N: usize> MapLeaves<L, M> for [T; N] {
    type Output = [T::Output; N];

    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, L, M>) -> Result<[T::Output; N]> {
        let mut mapped = Vec::with_capacity(N);
        for (i, tree) in self.iter().enumerate() {
            mapped.push(path.within(i, |path| tree.map_leaves(path, mapper))?);
        }
        Ok(mapped.try_into().unwrap_or_else(|_| unreachable!("one mapped tree for each of {N}")))
    }
}

impl<L, T: Tree<L>> Tree<L> for BTreeMap<String, T> {
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>) {
        visitor(path, Entry::Static(&self.len()));
        for (key, tree) in self {
            path.within(key, |path| {
                visitor(path, Entry::Static(key));
                tree.visit(path, visitor);
            });
        }
    }
}

impl<L, M, T: MapLeaves<L, M>> MapLeaves<L, M> for BTreeMap<String, T> {
    type Output = BTreeMap<String, T::Output>;

    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, L, M>) -> Result<Self::Output> {
        let map = |(key, tree): (&String, &T)| {
            Ok((key.clone(), path.within(key, |path| tree.map_leaves(path, mapper))?))
        };
        self.iter().map(map).collect()
    }
}

/// The entries of a map in the order of their keys.
fn sorted<T>(map: &HashMap<String, T>) -> BTreeMap<&String, &T> {
    map.iter().collect()
}

impl<L, T: Tree<L>> Tree<L> for HashMap<String, T> {
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>) {
        visitor(path, Entry::Static(&self.len()));
        for (key, tree) in sorted(self) {
            path.within(key, |path| {
                visitor(path, Entry::Static(key));
                tree.visit(path, visitor);
            });
        }
    }
}

impl<L, M, T: MapLeaves<L, M>> MapLeaves<L, M> for HashMap<String, T> {
    type Output = HashMap<String, T::Output>;

    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, L, M>) -> Result<Self::Output> {
        let map = |(key, tree): (&String, &T)| {
            Ok((key.clone(), path.within(key, |path| tree.map_leaves(path, mapper))?))
        };
        sorted(self).into_iter().map(map).collect()
    }
}

macro_rules! statics {
    ($($type:ty),*) => {$(
        impl<L> Tree<L> for $type {
            fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>) {
                visitor(path, Entry::Static(self));
            }
        }

        impl<L, M> MapLeaves<L, M> for $type {
            type Output = $type;

            fn map_leaves(&self, _: &mut Path, _: &mut Mapper<'_, L, M>) -> Result<$type> {
                Ok(self.clone())
            }
        }
    )*};
}

statics!((), bool, u8, u32, u64, usize, i32, i64, isize, f32, f64, char, String, &'static str);

macro_rules! tuples {
    ($($name:ident $position:tt),*) => {
        impl<L, $($name: Tree<L>),*> Tree<L> for ($($name,)*) {
            fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, L>) {
                $(path.within($position, |path| self.$position.visit(path, visitor));)*
            }
        }

        impl<L, M, $($name: MapLeaves<L, M>),*> MapLeaves<L, M> for ($($name,)*) {
            type Output = ($($name::Output,)*);

            fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, L, M>) -> Result<Self::Output> {
                Ok(($(path.within($position, |path| self.$position.map_leaves(path, mapper))?,)*))
            }
        }
    };
}

tuples!(A 0);
tuples!(A 0, B 1);
tuples!(A 0, B 1, C 2);
tuples!(A 0, B 1, C 2, D 3);
tuples!(A 0, B 1, C 2, D 3, E 4);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, N 11);
