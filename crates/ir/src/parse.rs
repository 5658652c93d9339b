//! The text form, read: a recursive descent over the tokens of [`crate::lexer`]. [`parse`] has the grammar.

use std::collections::HashMap;

use crate::lexer::{Token, error_at, line_and_column, next_token};
use crate::op::{AssociativeScan, FlexAttention, FlexAttentionBackward};
use crate::{
    Binary, Compare, Contribution, DType, DotAxes, Error, ErrorKind, Graph, Literal, Op, Origin, Reduction,
    Result, Scalar, Type, Unary, Value, element_count,
};

/// Regions inside regions.
const DEPTH_LIMIT: usize = 32;

/// Elements of one constant: a text of a line must not ask for all memory.
const ELEMENT_LIMIT: usize = 1 << 26;

/// Reads a program from its text form; `parse(&graph.to_string())` gives a graph equal to `graph`.
///
/// ```text
/// text       = "graph" region
/// region     = "(" [ parameter { "," parameter } ] ")" "->" "(" [ values ] ")" "{" { statement } "}"
/// parameter  = value ":" type
/// statement  = value ":" type "=" "parameter"
///            | result { "," result } "=" operation [ origin ]
/// result     = value [ ":" type ]
/// operation  = name [ values | elements ] { key "=" attribute } { label region }
/// values     = value { "," value }
/// elements   = element | "[" [ element { "," element } ] "]"          (of a constant, row-major)
/// attribute  = number | "true" | "false" | "[" [ item { "," item } ] "]"
/// item       = number [ ":" number ]                          (with ":" in `contributions` alone)
/// type       = dtype "[" [ number { "," number } ] "]"        (f32[] is one element)
/// origin     = "@" string ":" line ":" column                 (string escapes: \\ \" \n \r)
/// value      = "%" name or number
/// element    = decimal | "inf" | "-inf" | "nan" | "true" | "false" | "0x" bits of a float
/// ```
/// Comments run from `//` or `;` to the end of the line; line breaks are blanks.
///
/// The type of a result is what `constant`, `iota`, `cast`, `broadcast`, `reshape`, `scatter_add` and
/// `random_bits` make, and must be written there; elsewhere it may be left out, and is checked where it is
/// written. A constant with one element for several positions has it at each. Attributes stand in this order:
///
/// | operation | attributes and regions |
/// |---|---|
/// | `iota`, `concatenate`, `argmax` | `axis` |
/// | `broadcast`, `reverse`, `reduce_sum`, `reduce_prod`, `reduce_max`, `reduce_min` | `axes` |
/// | `transpose` | `permutation` |
/// | `slice` | `start limit step` |
/// | `pad` | `low high interior` |
/// | `dot` | `left_batch right_batch left_contract right_contract` |
/// | `flex_attention` | `scale score(…) [mask(…)]` |
/// | `flex_attention_backward` | `scale contributions learned log_sum_exp_cotangent joint(…) [mask(…)]` |
/// | `associative_scan` | `leaves axis reverse combine(…)` |
///
/// Values are visible from their statement to the end of their region, not inside other regions, and may
/// have any names. A `parameter` statement adds a parameter after those of the header.
///
/// # Errors
/// [`ErrorKind::Parse`] with line and column where the text does not follow the grammar, and the errors of
/// [`Graph::add`] where an operation's operands do not fit, with the place in the text (as file `<text>`)
/// where the operation has no origin.
pub fn parse(text: &str) -> Result<Graph> {
    let (token, start, end) = next_token(text, 0)?;
    let mut parser = Parser { text, token, start, end };
    parser.word("graph")?;
    let graph = parser.region(0)?;
    match parser.token {
        Token::End => Ok(graph),
        _ => Err(parser.expected("the end of the text")),
    }
}

/// The text, and the token that is looked at.
struct Parser<'a> {
    text: &'a str,
    token: Token<'a>,
    start: usize,
    end: usize,
}

/// A value's name, and where it stands.
type Name<'a> = (&'a str, usize);

type Scope<'a> = HashMap<&'a str, Value>;

impl<'a> Parser<'a> {
    fn region(&mut self, depth: usize) -> Result<Graph> {
        if depth > DEPTH_LIMIT {
            return Err(Error::new(ErrorKind::Limit {
                what: "the nesting of regions".into(),
                limit: DEPTH_LIMIT,
            })
            .at(self.place(self.start)));
        }
        let mut graph = Graph::new();
        let mut scope = Scope::new();
        self.mark('(')?;
        for (name, ty) in self.until(')', |parser| {
            let name = parser.value_name()?;
            parser.mark(':')?;
            Ok((name, parser.ty()?))
        })? {
            let value = graph.parameter(ty);
            self.define(&mut scope, name, value)?;
        }
        self.expect(Token::Arrow)?;
        self.mark('(')?;
        let results = self.until(')', Parser::value_name)?;
        self.mark('{')?;
        while !self.accept(Token::Mark('}'))? {
            self.statement(&mut graph, &mut scope, depth)?;
        }
        let results = results.into_iter().map(|name| self.resolve(&scope, name)).collect::<Result<_>>()?;
        graph.set_results(results);
        Ok(graph)
    }

    fn statement(&mut self, graph: &mut Graph, scope: &mut Scope<'a>, depth: usize) -> Result<()> {
        let mut names = Vec::new();
        let mut types = Vec::new();
        loop {
            names.push(self.value_name()?);
            types.push(if self.accept(Token::Mark(':'))? { Some(self.ty()?) } else { None });
            if !self.accept(Token::Mark(','))? {
                break;
            }
        }
        self.mark('=')?;
        let place = self.start;
        let Token::Word(operation) = self.token else { return Err(self.expected("an operation")) };
        self.advance()?;
        let annotation = types[0].as_ref().ok_or(place);
        let values = if operation == "parameter" {
            vec![graph.parameter(self.written(annotation)?.clone())]
        } else {
            let operands = self.operands(scope)?;
            let op = self.operation(operation, place, annotation, depth)?;
            let origin = self.origin()?;
            graph.add(op, &operands, origin).map_err(|error| error.at(self.place(place)))?
        };
        if names.len() != values.len() {
            let message = format!("{operation} has {} results, {} are named", values.len(), names.len());
            return Err(error_at(self.text, names[0].1, message));
        }
        for ((name, ty), value) in names.into_iter().zip(types).zip(values) {
            if let Some(written) = ty.filter(|ty| ty != graph.ty(value)) {
                let message = format!("%{} is written as {written} but is {}", name.0, graph.ty(value));
                return Err(error_at(self.text, name.1, message));
            }
            self.define(scope, name, value)?;
        }
        Ok(())
    }

    fn operands(&mut self, scope: &Scope<'a>) -> Result<Vec<Value>> {
        let mut operands = Vec::new();
        if let Token::Value(_) = self.token {
            loop {
                let name = self.value_name()?;
                operands.push(self.resolve(scope, name)?);
                if !self.accept(Token::Mark(','))? {
                    break;
                }
            }
        }
        Ok(operands)
    }

    /// The operation of this name, whose attributes and regions come next. `annotation` is the written type
    /// of the first result, or where it is missing.
    fn operation(
        &mut self,
        name: &str,
        place: usize,
        annotation: std::result::Result<&Type, usize>,
        depth: usize,
    ) -> Result<Op> {
        if let Some(unary) = Unary::ALL.into_iter().find(|unary| unary.name() == name) {
            return Ok(Op::Unary(unary));
        }
        if let Some(binary) = Binary::ALL.into_iter().find(|binary| binary.name() == name) {
            return Ok(Op::Binary(binary));
        }
        if let Some(compare) = Compare::ALL.into_iter().find(|compare| compare.name() == name) {
            return Ok(Op::Compare(compare));
        }
        let reduction = name.strip_prefix("reduce_");
        if let Some(kind) = Reduction::ALL.into_iter().find(|kind| Some(kind.name()) == reduction) {
            return Ok(Op::Reduce { kind, axes: self.list("axes")? });
        }
        Ok(match name {
            "constant" => Op::Constant(self.literal(self.written(annotation)?)?),
            "iota" => {
                let Type { dtype, shape } = self.written(annotation)?.clone();
                Op::Iota { dtype, shape, axis: self.count("axis")? }
            }
            "select" => Op::Select,
            "cast" => Op::Cast(self.written(annotation)?.dtype),
            "stop_gradient" => Op::StopGradient,
            "broadcast" => {
                let shape = self.written(annotation)?.shape.clone();
                Op::Broadcast { shape, axes: self.list("axes")? }
            }
            "reshape" => Op::Reshape { shape: self.written(annotation)?.shape.clone() },
            "transpose" => Op::Transpose { permutation: self.list("permutation")? },
            "slice" => {
                Op::Slice { start: self.list("start")?, limit: self.list("limit")?, step: self.list("step")? }
            }
            "pad" => {
                Op::Pad { low: self.list("low")?, high: self.list("high")?, interior: self.list("interior")? }
            }
            "reverse" => Op::Reverse { axes: self.list("axes")? },
            "concatenate" => Op::Concatenate { axis: self.count("axis")? },
            "argmax" => Op::ArgMax { axis: self.count("axis")? },
            "dot" => Op::Dot(DotAxes {
                left_batch: self.list("left_batch")?,
                right_batch: self.list("right_batch")?,
                left_contract: self.list("left_contract")?,
                right_contract: self.list("right_contract")?,
            }),
            "gather" => Op::Gather,
            "scatter_add" => Op::ScatterAdd { shape: self.written(annotation)?.shape.clone() },
            "random_bits" => Op::RandomBits { shape: self.written(annotation)?.shape.clone() },
            "flex_attention" => Op::FlexAttention(Box::new(FlexAttention {
                scale: self.float("scale")?,
                score: self.labelled("score", depth)?,
                mask: self.mask(depth)?,
            })),
            "flex_attention_backward" => {
                let scale = self.float("scale")?;
                let contributions = self.contributions()?;
                let learned = self.list("learned")?;
                let log_sum_exp_cotangent = self.truth("log_sum_exp_cotangent")?;
                let joint = self.labelled("joint", depth)?;
                let mask = self.mask(depth)?;
                Op::FlexAttentionBackward(Box::new(FlexAttentionBackward {
                    scale,
                    joint,
                    mask,
                    contributions,
                    learned,
                    log_sum_exp_cotangent,
                }))
            }
            "associative_scan" => Op::AssociativeScan(Box::new(AssociativeScan {
                leaves: self.count("leaves")?,
                axis: self.count("axis")?,
                reverse: self.truth("reverse")?,
                combine: self.labelled("combine", depth)?,
            })),
            _ => return Err(error_at(self.text, place, format!("there is no operation {name}"))),
        })
    }

    fn written<'t>(&self, annotation: std::result::Result<&'t Type, usize>) -> Result<&'t Type> {
        annotation.map_err(|place| {
            error_at(self.text, place, "the result's type must be written, as in %name: f32[2, 3] = …")
        })
    }

    fn labelled(&mut self, label: &str, depth: usize) -> Result<Graph> {
        self.word(label)?;
        self.region(depth + 1)
    }

    fn mask(&mut self, depth: usize) -> Result<Option<Graph>> {
        if self.accept(Token::Word("mask"))? { Ok(Some(self.region(depth + 1)?)) } else { Ok(None) }
    }

    fn contributions(&mut self) -> Result<Vec<Contribution>> {
        self.key("contributions")?;
        self.mark('[')?;
        self.until(']', |parser| {
            let capture = parser.number()?;
            parser.mark(':')?;
            Ok(Contribution { capture, indices: parser.number()? })
        })
    }

    fn list(&mut self, key: &str) -> Result<Vec<usize>> {
        self.key(key)?;
        self.mark('[')?;
        self.until(']', Parser::number)
    }

    fn count(&mut self, key: &str) -> Result<usize> {
        self.key(key)?;
        self.number()
    }

    fn float(&mut self, key: &str) -> Result<f64> {
        self.key(key)?;
        match self.token {
            Token::Number(text) | Token::Word(text) => match text.parse() {
                Ok(number) => self.advance().map(|()| number),
                Err(_) => Err(self.expected("a number")),
            },
            _ => Err(self.expected("a number")),
        }
    }

    fn truth(&mut self, key: &str) -> Result<bool> {
        self.key(key)?;
        let truth = match self.token {
            Token::Word("true") => true,
            Token::Word("false") => false,
            _ => return Err(self.expected("true or false")),
        };
        self.advance()?;
        Ok(truth)
    }

    fn key(&mut self, key: &str) -> Result<()> {
        if self.token != Token::Word(key) {
            return Err(self.expected(&format!("{key}=")));
        }
        self.advance()?;
        self.mark('=')
    }

    /// A constant's elements: one for all, or a list of all.
    fn literal(&mut self, ty: &Type) -> Result<Literal> {
        let place = self.start;
        let count = ty.elements();
        if count > ELEMENT_LIMIT {
            let what = format!("a constant of type {ty}");
            return Err(Error::new(ErrorKind::Limit { what, limit: ELEMENT_LIMIT }).at(self.place(place)));
        }
        let bytes = if self.accept(Token::Mark('['))? {
            self.until(']', |parser| parser.element(ty.dtype))?.concat()
        } else {
            self.element(ty.dtype)?.repeat(count)
        };
        if bytes.len() != ty.bytes() {
            let found = bytes.len() / ty.dtype.size();
            return Err(error_at(self.text, place, format!("{ty} has {count} elements, {found} are given")));
        }
        Ok(Literal::array(ty.clone(), bytes))
    }

    fn element(&mut self, dtype: DType) -> Result<Vec<u8>> {
        let bytes = match self.token {
            Token::Number(text) | Token::Word(text) => element_bytes(dtype, text),
            _ => None,
        };
        let bytes = bytes.ok_or_else(|| self.expected(&format!("an element of type {dtype}")))?;
        self.advance()?;
        Ok(bytes)
    }

    fn ty(&mut self) -> Result<Type> {
        let Token::Word(name) = self.token else { return Err(self.expected("a type")) };
        let dtype = DType::from_name(name).ok_or_else(|| self.expected("a type"))?;
        let place = self.start;
        self.advance()?;
        self.mark('[')?;
        let shape = self.until(']', Parser::number)?;
        element_count(&shape).map_err(|error| error.at(self.place(place)))?;
        Ok(Type::new(dtype, shape))
    }

    fn origin(&mut self) -> Result<Option<Origin>> {
        if !self.accept(Token::Mark('@'))? {
            return Ok(None);
        }
        let Token::Quoted(file) = self.token else { return Err(self.expected("a file in quotes")) };
        self.advance()?;
        self.mark(':')?;
        let line = self.number()?;
        self.mark(':')?;
        let column = self.number()?;
        Ok(Some(Origin { file: unescape(file).into(), line, column }))
    }

    /// Items up to the closing mark, with commas between.
    fn until<T>(&mut self, closing: char, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        if self.accept(Token::Mark(closing))? {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.accept(Token::Mark(closing))? {
                return Ok(items);
            }
            if !self.accept(Token::Mark(','))? {
                return Err(self.expected(&format!("`,` or `{closing}`")));
            }
        }
    }

    fn number<N: std::str::FromStr>(&mut self) -> Result<N> {
        let number = match self.token {
            Token::Number(text) => text.parse().ok(),
            _ => None,
        };
        let number = number.ok_or_else(|| self.expected("a number from 0 up"))?;
        self.advance()?;
        Ok(number)
    }

    fn value_name(&mut self) -> Result<Name<'a>> {
        let Token::Value(name) = self.token else { return Err(self.expected("a value, as %name")) };
        let place = self.start;
        self.advance()?;
        Ok((name, place))
    }

    fn define(&self, scope: &mut Scope<'a>, (name, place): Name<'a>, value: Value) -> Result<()> {
        match scope.insert(name, value) {
            None => Ok(()),
            Some(_) => Err(error_at(self.text, place, format!("%{name} is defined twice"))),
        }
    }

    fn resolve(&self, scope: &Scope<'a>, (name, place): Name<'a>) -> Result<Value> {
        let message = || format!("%{name} is not defined in this region before it is read");
        scope.get(name).copied().ok_or_else(|| error_at(self.text, place, message()))
    }

    fn word(&mut self, word: &str) -> Result<()> {
        if self.token != Token::Word(word) {
            return Err(self.expected(&format!("`{word}`")));
        }
        self.advance()
    }

    fn mark(&mut self, mark: char) -> Result<()> {
        self.expect(Token::Mark(mark))
    }

    fn expect(&mut self, token: Token<'static>) -> Result<()> {
        if self.accept(token)? { Ok(()) } else { Err(self.expected(&format!("`{token}`"))) }
    }

    fn accept(&mut self, token: Token<'static>) -> Result<bool> {
        let found = self.token == token;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn advance(&mut self) -> Result<()> {
        (self.token, self.start, self.end) = next_token(self.text, self.end)?;
        Ok(())
    }

    fn expected(&self, what: &str) -> Error {
        error_at(self.text, self.start, format!("{what} expected, `{}` found", self.token))
    }

    /// A byte of the text as an origin, for errors that are not about the grammar.
    fn place(&self, position: usize) -> Option<Origin> {
        let (line, column) = line_and_column(self.text, position);
        Some(Origin { file: "<text>".into(), line: line as u32, column: column as u32 })
    }
}

fn element_bytes(dtype: DType, text: &str) -> Option<Vec<u8>> {
    match dtype {
        DType::Bool => text.parse::<bool>().ok().map(|truth| vec![truth as u8]),
        DType::I64 => Some(text.parse::<i64>().ok()?.to_le_bytes().to_vec()),
        DType::I32 => Some(text.parse::<i32>().ok()?.to_le_bytes().to_vec()),
        DType::U8 => Some(text.parse::<u8>().ok()?.to_le_bytes().to_vec()),
        DType::F64 | DType::F32 | DType::BF16 | DType::F16 => match text.strip_prefix("0x") {
            Some(digits) if digits.len() == 2 * dtype.size() => {
                let bits = u64::from_str_radix(digits, 16).ok()?;
                Some(bits.to_le_bytes()[..dtype.size()].to_vec())
            }
            Some(_) => None,
            None if dtype == DType::F32 => Some(text.parse::<f32>().ok()?.to_le_bytes().to_vec()),
            None => Some(Scalar::Float(text.parse().ok()?).to_bytes(dtype)),
        },
    }
}

fn unescape(quoted: &str) -> String {
    let mut text = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => text.extend(characters.next().map(|c| match c {
                'n' => '\n',
                'r' => '\r',
                c => c,
            })),
            _ => text.push(c),
        }
    }
    text
}
