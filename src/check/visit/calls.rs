//! Calls: dynamic attributes, readers and writers, string dispatch, unpickling, `type` with three arguments.

use rustpython_ast::visitor::Visitor;
use rustpython_ast::{self as ast, Arguments, Expr};
use rustpython_text_size::Ranged;
use smallvec::SmallVec;

use super::super::scope::texts;
use super::{RawFinding, Rule, Rules, Value};

/// Methods of `str` and `bytes` that make a string.
const TEXT_METHODS: &[&str] = &[
    "join",
    "format",
    "replace",
    "lower",
    "upper",
    "strip",
    "lstrip",
    "rstrip",
    "decode",
    "title",
    "translate",
    "removeprefix",
    "removesuffix",
];

/// Where a reader or writer may go.
#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl<'a> Rules<'a, '_> {
    pub(super) fn visit_call(&mut self, call: &'a ast::ExprCall) {
        let arguments = &call.arguments;
        // A chain of attributes is judged as it is evaluated.
        let functions = match &*call.func {
            chain @ Expr::Attribute(_) => self.visit_attribute(chain, true),
            other => self.scopes.eval(other),
        };
        let mut paths: SmallVec<[&str; 2]> = functions.iter().filter_map(Value::path).collect();
        if let Expr::Name(name) = &*call.func
            && self.policy.builtins.contains(&name.id)
            && self.is_shadowed(&name.id)
        {
            paths.clear();
        }
        self.judge_unpickling(call, &paths);
        if paths.contains(&"builtins.type") {
            self.judge_type(call);
        }
        let is_name = call.func.is_name_expr();
        if is_name && let Some(accessor) = accessor(&paths) {
            // The accessor itself is judged here, not as a builtin used as a value.
            if self.judge_accessor(call, accessor) {
                return;
            }
        }
        let method = call.func.as_attribute_expr().map(|attribute| attribute.attr.as_str());
        let covered = |set: &super::super::policy::Paths| {
            method.is_some_and(|name| set.has_method(name)) || paths.iter().any(|path| set.names(path))
        };
        if covered(&self.policy.io.readers) {
            self.judge_io(call, Direction::Read);
        } else if covered(&self.policy.io.writers) {
            self.judge_io(call, Direction::Write);
        }
        if covered(&self.policy.expressions) {
            self.judge_expression(arguments, call.range);
        }
        if let Expr::Attribute(attribute) = &*call.func {
            let name = attribute.attr.as_str();
            if matches!(name, "format" | "format_map") {
                self.judge_format(&attribute.value, arguments, call.range);
            }
            if self.policy.dispatch.contains(name) {
                self.judge_dispatch(arguments);
            }
        } else {
            self.visit_callee(&call.func);
        }
        self.visit_arguments(arguments);
    }

    /// The function of a call, which may be a reader or writer there.
    fn visit_callee(&mut self, func: &'a Expr) {
        match func {
            Expr::Name(name) => self.judge_name(name, false),
            _ => self.visit_expr(func),
        }
    }

    fn judge_type(&mut self, call: &'a ast::ExprCall) {
        let arguments = &call.arguments;
        if arguments.args.len() != 1 || arguments.args[0].is_starred_expr() || !arguments.keywords.is_empty() {
            self.add(
                RawFinding::new(Rule::Metaclass, call.range, "a class made by 'type' is not allowed")
                    .hint("use a class statement"),
            );
        }
    }

    /// `getattr` and its like, called in place; whether the whole call has been walked.
    fn judge_accessor(&mut self, call: &'a ast::ExprCall, accessor: &str) -> bool {
        let arguments = &call.arguments;
        let [object, name, rest @ ..] = &*arguments.args else { return false };
        let plain = arguments.keywords.is_empty() && !arguments.args.iter().any(Expr::is_starred_expr);
        let names = self.scopes.eval(name);
        let own = matches!(object, Expr::Name(object) if object.id == "self");
        match texts(&names).filter(|_| plain) {
            Some(names) => {
                let values = self.scopes.eval(object);
                for name in names {
                    self.judge_attribute_name(name, call.range, own);
                    for value in &values {
                        if let Value::Module(path) | Value::Member(path) = value {
                            self.judge_member(path, name, call.range);
                        }
                    }
                    let members = self.scopes.member_of(values.clone(), name);
                    let is_io = members.iter().filter_map(Value::path).any(|path| self.is_io_path(path));
                    if self.is_io_method(name) || is_io || self.policy.expressions.has_method(name) {
                        let message = format!("'{name}' is used as a value");
                        self.add(RawFinding::new(Rule::IoValue, call.range, message).hint("call it in place"));
                    }
                }
            }
            None if accessor == "hasattr" || accessor == "setattr" && own && plain => {}
            None => self.add(
                RawFinding::new(
                    Rule::DynamicAttribute,
                    call.range,
                    format!("{accessor} with a name that is not a literal"),
                )
                .hint("use a dict of the allowed choices"),
            ),
        }
        let object_values = self.scopes.eval(object);
        let replaces = matches!(accessor, "setattr" | "delattr");
        if let Some(path) = object_values.iter().filter_map(Value::path).find(|_| replaces) {
            let message = format!("{accessor} on '{path}' is not allowed");
            self.add(RawFinding::new(Rule::ModuleMember, call.range, message));
        }
        self.visit_test(object);
        self.visit_expr(name);
        rest.iter().for_each(|rest| self.visit_expr(rest));
        arguments.keywords.iter().for_each(|keyword| self.visit_keyword(keyword));
        true
    }

    /// `allow_pickle` given as anything but `False`, by name or as the third argument of `numpy.load`.
    fn judge_unpickling(&mut self, call: &'a ast::ExprCall, paths: &[&str]) {
        let by_name = call.arguments.find_keyword("allow_pickle").map(|keyword| &keyword.value);
        let by_place = call.arguments.args.get(2).filter(|_| paths.contains(&"numpy.load"));
        for value in by_name.into_iter().chain(by_place) {
            if !matches!(value, Expr::BooleanLiteral(literal) if !literal.value) {
                let finding = RawFinding::new(Rule::Pickle, value.range(), "loading of pickled objects is not allowed");
                self.add(finding.hint("save plain arrays, or use parquet"));
            }
        }
    }

    fn judge_io(&mut self, call: &'a ast::ExprCall, direction: Direction) {
        let Arguments { args, keywords, .. } = &call.arguments;
        let functions = self.scopes.eval(&call.func);
        let path = functions.iter().find_map(Value::path).and_then(|path| path.rsplit('.').next());
        let function = path.or(call.func.as_attribute_expr().map(|attribute| attribute.attr.as_str()));
        let unpacked = args.iter().find(|arg| arg.is_starred_expr()).map(Ranged::range);
        let unpacked = unpacked.or_else(|| keywords.iter().find(|keyword| keyword.arg.is_none()).map(Ranged::range));
        if let Some(range) = unpacked {
            self.add_io(direction, range, "a reader or writer is called with unpacked arguments");
            return;
        }
        let named = keywords
            .iter()
            .filter(|keyword| keyword.arg.as_ref().is_some_and(|arg| self.policy.io.path_arguments.contains(arg)));
        let place = usize::from(function.is_some_and(|name| self.policy.io.path_second.contains(name)));
        let targets: Vec<&Expr> = args.get(place).into_iter().chain(named.map(|keyword| &keyword.value)).collect();
        for target in targets {
            let values = self.scopes.eval(target);
            if values.is_empty() || !values.iter().all(|value| self.is_allowed_target(value, direction)) {
                let message = match direction {
                    Direction::Read => "a reader may only read a literal path under /input or /work, or a StringIO",
                    Direction::Write => "a writer may only write a literal path under /output or /work, or a StringIO",
                };
                self.add_io(direction, target.range(), message);
            }
        }
    }

    fn add_io(&mut self, direction: Direction, range: rustpython_text_size::TextRange, message: &str) {
        let (rule, hint) = match direction {
            Direction::Read => (Rule::Reader, "inputs are at /input/NAME; tables given by the caller are global names"),
            Direction::Write => (Rule::Writer, "artifacts go to /output/NAME, tables into the name 'result'"),
        };
        self.add(RawFinding::new(rule, range, message).hint(hint));
    }

    fn is_allowed_target(&self, value: &Value, direction: Direction) -> bool {
        let io = &self.policy.io;
        match (value, direction) {
            (Value::Buffer, _) | (Value::Nothing, Direction::Write) => true,
            (Value::Text(path), Direction::Read) => is_under(path, &io.read_roots),
            (Value::Text(path), Direction::Write) => {
                let lower = path.to_ascii_lowercase();
                is_under(path, &io.write_roots)
                    && !io.code_suffixes.iter().any(|suffix| lower.ends_with(suffix.as_str()))
            }
            _ => false,
        }
    }

    /// Whether an expression makes a string, as far as its form tells.
    fn makes_text(&self, expr: &Expr) -> bool {
        match expr {
            Expr::BinOp(_) | Expr::FString(_) => true,
            Expr::Subscript(subscript) => texts(&self.scopes.eval(&subscript.value)).is_some(),
            Expr::Call(call) => match &*call.func {
                Expr::Name(name) => name.id == "str",
                Expr::Attribute(method) => TEXT_METHODS.contains(&method.attr.as_str()),
                _ => false,
            },
            _ => false,
        }
    }

    /// `df.agg("to_csv", path_or_buf=...)`: a method named by a string gets the further arguments.
    fn judge_dispatch(&mut self, arguments: &'a Arguments) {
        let function = arguments.args.first().or_else(|| arguments.find_keyword("func").map(|keyword| &keyword.value));
        let Some(function) = function else { return };
        let mut names = Vec::new();
        collect_elements(function, &mut names);
        for name in names {
            let values = self.scopes.eval(name);
            let forbidden = values.iter().any(|value| match value {
                Value::Text(text) => self.is_forbidden_attribute(text) || self.policy.expressions.has_method(text),
                _ => false,
            });
            if forbidden {
                self.add(RawFinding::new(
                    Rule::StringDispatch,
                    name.range(),
                    "the method named by the string is not allowed",
                ));
            }
        }
        let unseen = texts(&self.scopes.eval(function)).is_none();
        let computed = unseen && self.makes_text(function) && arguments.args.len() > 1;
        let path = arguments
            .keywords
            .iter()
            .find(|keyword| keyword.arg.as_ref().is_some_and(|arg| self.policy.io.path_arguments.contains(arg)));
        if computed || path.is_some() {
            let range = path.map_or(function.range(), Ranged::range);
            let finding =
                RawFinding::new(Rule::StringDispatch, range, "a method is called by a name that cannot be seen");
            self.add(finding.hint("pass the function itself"));
        }
    }
}

/// The accessor of attributes that is called, if any.
fn accessor<'n>(paths: &[&'n str]) -> Option<&'n str> {
    paths.iter().find_map(|path| {
        path.strip_prefix("builtins.").filter(|name| matches!(*name, "getattr" | "setattr" | "delattr" | "hasattr"))
    })
}

/// The strings that `agg` and its like may be given: one, a list, or the values of a dict.
fn collect_elements<'e>(expr: &'e Expr, into: &mut Vec<&'e Expr>) {
    match expr {
        Expr::List(ast::ExprList { elts, .. }) | Expr::Tuple(ast::ExprTuple { elts, .. }) => {
            elts.iter().for_each(|element| collect_elements(element, into));
        }
        Expr::Dict(dict) => dict.items.iter().for_each(|item| collect_elements(&item.value, into)),
        _ => into.push(expr),
    }
}

/// Whether a path, read from the working directory `/work`, lies under one of `roots` however it is written.
fn is_under(path: &str, roots: &[String]) -> bool {
    // No URL (`http://`), no chain of file systems (`a::b`), no home of another (`~user`).
    if path.contains("::") || path.contains("://") || path.starts_with('~') || path.contains('\0') {
        return false;
    }
    if !path.starts_with('/') && path.contains(':') {
        return false;
    }
    let absolute = if path.starts_with('/') { path.to_owned() } else { format!("/work/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in absolute.split('/') {
        match part {
            "" | "." => {}
            // Climbing is refused even where it comes out right: a symbolic link would change what it means.
            ".." => return false,
            _ => parts.push(part),
        }
    }
    let normal = format!("/{}", parts.join("/"));
    roots.iter().any(|root| normal.strip_prefix(root.as_str()).is_some_and(|rest| rest.starts_with('/')))
}
