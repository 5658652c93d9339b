//! `#[derive(Tree)]` for structs and enums that are generic over their leaves.
//!
//! The first type parameter is the leaf: `struct Layer<L> { weight: L, bias: Option<L> }` becomes a
//! `Tree<L>`, and a `MapLeaves<L, M>` with `Output = Layer<M>`. A field marked `#[tree(static)]` is structure,
//! not a subtree: it needs `Debug` (what distinguishes its values) and `Clone`.

#![forbid(unsafe_code)]

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{
    Data, DeriveInput, Error, Fields, GenericParam, Ident, Index, Member, Result, parse_macro_input,
    parse_quote,
};

/// Derives `Tree` and `MapLeaves`. See the crate's opening.
#[proc_macro_derive(Tree, attributes(tree))]
pub fn derive_tree(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// A field of the type or of one variant.
struct Field {
    member: Member,
    binding: Ident,
    is_static: bool,
}

impl Field {
    /// Its segment of the path.
    fn segment(&self) -> TokenStream {
        match &self.member {
            Member::Named(name) => {
                let name = name.to_string();
                let name = name.trim_start_matches("r#");
                quote!(#name)
            }
            Member::Unnamed(Index { index, .. }) => quote!(#index),
        }
    }
}

fn fields(fields: &Fields) -> Result<Vec<Field>> {
    let read = |(i, field): (usize, &syn::Field)| {
        let member = match &field.ident {
            Some(name) => Member::Named(name.clone()),
            None => Member::Unnamed(i.into()),
        };
        let mut is_static = false;
        for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("tree")) {
            attribute.parse_nested_meta(|meta| {
                // `static` is a keyword, which `is_ident` compares as well as any other name.
                is_static = meta.path.is_ident("static");
                if is_static { Ok(()) } else { Err(meta.error("`static` expected")) }
            })?;
        }
        Ok(Field { member, binding: format_ident!("field_{i}"), is_static })
    };
    fields.iter().enumerate().map(read).collect()
}

/// The arms of both functions for one constructor.
fn arms(constructor: TokenStream, variant: Option<&Ident>, fields: &[Field]) -> (TokenStream, TokenStream) {
    let pattern = fields.iter().map(|Field { member, binding, .. }| quote!(#member: #binding));
    let pattern = quote!(#constructor { #(#pattern),* });
    let variant = variant.map(|name| {
        let name = name.to_string();
        quote!(visitor(path, ::tilewright::tree::Entry::Static(&#name));)
    });
    let visits = fields.iter().map(|field| {
        let (binding, segment) = (&field.binding, field.segment());
        if field.is_static {
            quote!(path.within(#segment, |path| visitor(path, ::tilewright::tree::Entry::Static(#binding)));)
        } else {
            quote!(path.within(#segment, |path| ::tilewright::tree::Tree::visit(#binding, path, visitor));)
        }
    });
    let maps = fields.iter().map(|field| {
        let (member, binding, segment) = (&field.member, &field.binding, field.segment());
        if field.is_static {
            quote!(#member: ::core::clone::Clone::clone(#binding))
        } else {
            quote!(#member: path.within(#segment, |path| {
                ::tilewright::tree::MapLeaves::map_leaves(#binding, path, mapper)
            })?)
        }
    });
    let visit = quote!(#pattern => { #variant #(#visits)* });
    let map = quote!(#pattern => ::core::result::Result::Ok(#constructor { #(#maps),* }),);
    (visit, map)
}

fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let name = &input.ident;
    let leaf =
        input.generics.type_params().next().map(|parameter| parameter.ident.clone()).ok_or_else(|| {
            Error::new(name.span(), "a tree is generic over its leaves: `struct Layer<L> { weight: L }`")
        })?;
    let constructors: Vec<(TokenStream, Option<&Ident>, Vec<Field>)> = match &input.data {
        Data::Struct(data) => vec![(quote!(#name), None, fields(&data.fields)?)],
        Data::Enum(data) => data
            .variants
            .iter()
            .map(|variant| {
                let ident = &variant.ident;
                Ok((quote!(#name::#ident), Some(ident), fields(&variant.fields)?))
            })
            .collect::<Result<_>>()?,
        Data::Union(data) => return Err(Error::new(data.union_token.span(), "a union cannot be a tree")),
    };
    let (visits, maps): (Vec<_>, Vec<_>) = constructors
        .into_iter()
        .map(|(constructor, variant, fields)| arms(constructor, variant, &fields))
        .unzip();

    let mapped = Ident::new("MappedLeaf", Span::mixed_site());
    let mut widened = input.generics.clone();
    widened.params.push(parse_quote!(#mapped));
    let (widened_generics, _, _) = widened.split_for_impl();
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    let conditions =
        where_clause.map(|clause| clause.predicates.iter().collect::<Vec<_>>()).unwrap_or_default();
    let outputs = input.generics.params.iter().map(|parameter| match parameter {
        GenericParam::Type(parameter) if parameter.ident == leaf => quote!(#mapped),
        GenericParam::Type(parameter) => {
            let ident = &parameter.ident;
            quote!(#ident)
        }
        GenericParam::Lifetime(parameter) => {
            let lifetime = &parameter.lifetime;
            quote!(#lifetime)
        }
        GenericParam::Const(parameter) => {
            let ident = &parameter.ident;
            quote!(#ident)
        }
    });
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics ::tilewright::tree::Tree<#leaf> for #name #type_generics
        where
            #leaf: ::tilewright::tree::Tree<#leaf>,
            #(#conditions,)*
        {
            fn visit(
                &self,
                path: &mut ::tilewright::tree::Path,
                visitor: &mut ::tilewright::tree::Visitor<'_, #leaf>,
            ) {
                match self { #(#visits)* }
            }
        }

        #[automatically_derived]
        impl #widened_generics ::tilewright::tree::MapLeaves<#leaf, #mapped> for #name #type_generics
        where
            #leaf: ::tilewright::tree::MapLeaves<#leaf, #mapped, Output = #mapped>,
            #mapped: ::tilewright::tree::Tree<#mapped>,
            #(#conditions,)*
        {
            type Output = #name<#(#outputs),*>;

            fn map_leaves(
                &self,
                path: &mut ::tilewright::tree::Path,
                mapper: &mut ::tilewright::tree::Mapper<'_, #leaf, #mapped>,
            ) -> ::tilewright::Result<Self::Output> {
                match self { #(#maps)* }
            }
        }
    })
}
