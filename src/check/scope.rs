//! What names stand for: modules and their members, constant strings, in-memory buffers.
//!
//! Each scope is read once, in the order of the source, before its statements are judged. A name stands for the union of
//! all that its scope ever binds to it, so that no order of execution can hide a meaning.

use std::rc::Rc;

use rustpython_ast::visitor::{self, Visitor};
use rustpython_ast::{self as ast, Expr, Operator, Parameters, Pattern, Stmt};
use rustpython_text_size::TextRange;
use smallvec::{SmallVec, smallvec};

use super::policy::{Map, Policy, Set};

/// Constant strings are followed up to this many bytes.
const TEXT_BYTES: usize = 4096;

/// Meanings of one name that are followed; a name with more is a finding.
const MEANINGS: usize = 16;

/// What an expression may stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A module bound by `import`, by its full name.
    Module(Rc<str>),
    /// A member of a module, by its full path: a submodule, a class, a function. Builtins are `builtins.NAME`.
    Member(Rc<str>),
    /// A constant string.
    Text(Rc<str>),
    /// An in-memory file.
    Buffer,
    /// `None`.
    Nothing,
    /// Anything else.
    Other,
}

impl Value {
    /// The path of a module or member.
    pub(super) fn path(&self) -> Option<&str> {
        match self {
            Value::Module(path) | Value::Member(path) => Some(path),
            _ => None,
        }
    }
}

/// A set of values: mostly one, which takes no allocation.
pub(super) type Values = SmallVec<[Value; 1]>;

/// The text of an expression that can only be constant strings, all of them.
pub(super) fn texts(values: &[Value]) -> Option<Vec<&str>> {
    let texts: Option<Vec<&str>> =
        values.iter().map(|value| if let Value::Text(text) = value { Some(&**text) } else { None }).collect();
    texts.filter(|texts| !texts.is_empty())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Module,
    /// Functions, lambdas and comprehensions: what they bind is theirs wherever the binding stands.
    Function,
    /// A class body: its names are not seen from the functions in it, and unbound ones are looked up outside.
    Class,
}

/// One scope and what it binds.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    pub(super) kind: Kind,
    pub(super) names: Map<&'a str, Values>,
    /// Names declared `global` here.
    pub(super) globals: Set<&'a str>,
    /// Names declared `nonlocal` here.
    pub(super) nonlocals: Set<&'a str>,
}

impl Scope<'_> {
    pub(super) fn new(kind: Kind) -> Self {
        Scope { kind, names: Map::default(), globals: Set::default(), nonlocals: Set::default() }
    }
}

/// The scopes around the statement at hand, outermost first.
pub(super) struct Scopes<'a, 'p> {
    pub(super) policy: &'p Policy,
    pub(super) stack: Vec<Scope<'a>>,
    /// Names with too many meanings.
    pub(super) overflowing: Vec<TextRange>,
}

impl<'a> Scopes<'a, '_> {
    /// What `name` may stand for here.
    pub(super) fn lookup(&self, name: &str) -> Values {
        let mut values = Values::new();
        let innermost = self.stack.len().saturating_sub(1);
        let global = self.stack.last().is_some_and(|scope| scope.globals.contains(name));
        for (depth, scope) in self.stack.iter().enumerate().rev() {
            if global && depth > 0 || scope.kind == Kind::Class && depth != innermost {
                continue;
            }
            if let Some(bound) = scope.names.get(name) {
                values.extend(bound.iter().cloned());
                if scope.kind != Kind::Class {
                    return values;
                }
            }
        }
        values.push(Value::Member(join("builtins", name)));
        values
    }

    /// What `expr` may stand for here.
    pub(super) fn eval(&self, expr: &Expr) -> Values {
        match expr {
            Expr::Name(name) => self.lookup(&name.id),
            Expr::Attribute(attribute) => self.member_of(self.eval(&attribute.value), &attribute.attr),
            Expr::StringLiteral(literal) => smallvec![text(literal.value.to_str())],
            Expr::FString(literal) => smallvec![self.fold_f_string(literal)],
            Expr::NoneLiteral(_) => smallvec![Value::Nothing],
            Expr::Named(named) => self.eval(&named.value),
            Expr::If(choice) => union(self.eval(&choice.body), self.eval(&choice.orelse)),
            Expr::BoolOp(choice) => choice.values.iter().map(|value| self.eval(value)).fold(Values::new(), union),
            Expr::BinOp(ast::ExprBinOp { left, op: Operator::Add, right, .. }) => {
                let left = self.eval(left);
                if !left.iter().all(|value| matches!(value, Value::Text(_))) {
                    return smallvec![Value::Other];
                }
                concatenate(&left, &self.eval(right))
            }
            Expr::Call(call) => self.eval_call(call),
            _ => smallvec![Value::Other],
        }
    }

    /// What the attribute `name` of `values` may stand for.
    pub(super) fn member_of(&self, mut values: Values, name: &str) -> Values {
        for value in &mut values {
            *value = value.path().map_or(Value::Other, |path| Value::Member(join(path, name)));
        }
        values.dedup();
        values
    }

    fn eval_call(&self, call: &ast::ExprCall) -> Values {
        // Most methods are told by their names, which spares the walk down a chain of calls.
        if let Expr::Attribute(method) = &*call.func
            && method.attr.as_str() != "getattr"
            && !self.policy.io.buffers.has_member(&method.attr)
        {
            return smallvec![Value::Other];
        }
        let functions = self.eval(&call.func);
        if functions.iter().all(|value| value.path().is_some_and(|path| self.policy.io.buffers.contains(path))) {
            return smallvec![Value::Buffer];
        }
        if let (true, [object, name, ..]) =
            (functions.iter().any(|value| value.path() == Some("builtins.getattr")), &*call.arguments.args)
            && let names = self.eval(name)
            && let Some(names) = texts(&names)
        {
            let object = self.eval(object);
            return names.iter().map(|name| self.member_of(object.clone(), name)).fold(Values::new(), union);
        }
        smallvec![Value::Other]
    }

    fn fold_f_string(&self, literal: &ast::ExprFString) -> Value {
        let mut folded = String::new();
        for part in &literal.value {
            match part {
                ast::FStringPart::Literal(part) => folded.push_str(part.as_str()),
                ast::FStringPart::FString(part) => {
                    for element in &part.elements {
                        match element {
                            ast::InterpolatedStringElement::Literal(part) => folded.push_str(&part.value),
                            ast::InterpolatedStringElement::Interpolation(part) => {
                                let plain = part.format_spec.is_none() && part.debug_text.is_none();
                                match &*self.eval(&part.expression) {
                                    [Value::Text(value)] if plain => folded.push_str(value),
                                    _ => return Value::Other,
                                }
                            }
                        }
                    }
                }
            }
            if folded.len() > TEXT_BYTES {
                return Value::Other;
            }
        }
        text(&folded)
    }

    /// Reads what the statements of `body` bind into the innermost scope.
    pub(super) fn collect(&mut self, parameters: Option<&'a Parameters>, body: &'a [Stmt]) {
        for parameter in parameters.into_iter().flatten() {
            self.bind(parameter.name(), parameter.name().range, smallvec![Value::Other]);
        }
        Collector { scopes: self }.visit_body(body);
    }

    /// Reads the assignment expressions of `expr` into the innermost scope.
    pub(super) fn collect_expr(&mut self, expr: &'a Expr) {
        Collector { scopes: self }.visit_expr(expr);
    }

    /// Binds the names of an assignment target in the innermost scope.
    pub(super) fn bind_target(&mut self, target: &'a Expr, values: &Values) {
        match target {
            Expr::Name(name) => self.bind(name.id.as_str(), name.range, values.clone()),
            Expr::Tuple(ast::ExprTuple { elts, .. }) | Expr::List(ast::ExprList { elts, .. }) => {
                elts.iter().for_each(|target| self.bind_target(target, &smallvec![Value::Other]));
            }
            Expr::Starred(starred) => self.bind_target(&starred.value, &smallvec![Value::Other]),
            _ => {}
        }
    }

    fn bind(&mut self, name: &'a str, range: TextRange, values: Values) {
        let to_module = self.stack.last().is_some_and(|scope| scope.globals.contains(name));
        let scope = if to_module { self.stack.first_mut() } else { self.stack.last_mut() };
        let Some(scope) = scope else { return };
        let bound = scope.names.entry(name).or_default();
        for value in values {
            if bound.contains(&value) {
            } else if bound.len() < MEANINGS {
                bound.push(value);
            } else {
                self.overflowing.push(range);
                return;
            }
        }
    }
}

/// The path of `name` in `path`.
fn join(path: &str, name: &str) -> Rc<str> {
    [path, name].join(".").into()
}

fn text(value: &str) -> Value {
    if value.len() > TEXT_BYTES { Value::Other } else { Value::Text(value.into()) }
}

fn union(mut left: Values, right: Values) -> Values {
    for value in right {
        if left.len() >= MEANINGS * MEANINGS {
            left.push(Value::Other);
            break;
        }
        if !left.contains(&value) {
            left.push(value);
        }
    }
    left
}

fn concatenate(left: &[Value], right: &[Value]) -> Values {
    let (Some(left), Some(right)) = (texts(left), texts(right)) else { return smallvec![Value::Other] };
    if left.len() * right.len() > MEANINGS {
        return smallvec![Value::Other];
    }
    left.iter().flat_map(|left| right.iter().map(move |right| text(&format!("{left}{right}")))).collect()
}

/// The names that a function's body binds, for the syntax check.
pub(super) struct Bindings;

impl Bindings {
    pub(super) fn names(body: &[Stmt]) -> Set<&str> {
        let mut scopes =
            Scopes { policy: Policy::builtin(), stack: vec![Scope::new(Kind::Function)], overflowing: Vec::new() };
        scopes.collect(None, body);
        scopes.stack.pop().map_or_else(Set::default, |scope| scope.names.into_keys().collect())
    }
}

/// Walks the statements of one scope, and no inner one.
struct Collector<'s, 'a, 'p> {
    scopes: &'s mut Scopes<'a, 'p>,
}

impl<'a> Collector<'_, 'a, '_> {
    fn other(&mut self, identifier: &'a ast::Identifier) {
        self.scopes.bind(identifier.as_str(), identifier.range, smallvec![Value::Other]);
    }

    fn assign(&mut self, target: &'a Expr, value: &'a Expr) {
        if let (Expr::Tuple(ast::ExprTuple { elts: targets, .. }), Expr::Tuple(ast::ExprTuple { elts: values, .. })) =
            (target, value)
            && targets.len() == values.len()
        {
            for (target, value) in targets.iter().zip(values) {
                self.assign(target, value);
            }
        } else {
            let values = if target.is_name_expr() { self.scopes.eval(value) } else { Values::new() };
            self.scopes.bind_target(target, &values);
        }
    }

    fn comprehension(&mut self, generators: &'a [ast::Comprehension], elements: [Option<&'a Expr>; 2]) {
        // Targets are the comprehension's own; assignment expressions in it are not.
        for generator in generators {
            self.visit_expr(&generator.iter);
            generator.ifs.iter().for_each(|test| self.visit_expr(test));
        }
        elements.into_iter().flatten().for_each(|element| self.visit_expr(element));
    }
}

impl<'a> Visitor<'a> for Collector<'_, 'a, '_> {
    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        match stmt {
            Stmt::FunctionDef(def) => {
                self.other(&def.name);
                def.decorator_list.iter().for_each(|decorator| self.visit_decorator(decorator));
                self.visit_parameters(&def.parameters);
                return;
            }
            Stmt::ClassDef(def) => {
                self.other(&def.name);
                def.decorator_list.iter().for_each(|decorator| self.visit_decorator(decorator));
                def.arguments.iter().for_each(|arguments| self.visit_arguments(arguments));
                return;
            }
            Stmt::Import(import) => {
                for alias in &import.names {
                    let full = alias.name.as_str();
                    let (name, path) = match &alias.asname {
                        Some(asname) => (asname.as_str(), full),
                        None => full.split_once('.').map_or((full, full), |(top, _)| (top, top)),
                    };
                    self.scopes.bind(name, alias.range, smallvec![Value::Module(path.into())]);
                }
            }
            Stmt::ImportFrom(import) => {
                let module = import.module.as_deref().unwrap_or_default();
                for alias in &import.names {
                    let name = alias.asname.as_ref().unwrap_or(&alias.name).as_str();
                    let path = join(module, &alias.name);
                    self.scopes.bind(name, alias.range, smallvec![Value::Member(path)]);
                }
            }
            Stmt::Assign(assign) => assign.targets.iter().for_each(|target| self.assign(target, &assign.value)),
            Stmt::AnnAssign(ast::StmtAnnAssign { target, value: Some(value), .. }) => self.assign(target, value),
            Stmt::AugAssign(assign) => self.scopes.bind_target(&assign.target, &smallvec![Value::Other]),
            Stmt::For(ast::StmtFor { target, .. }) => self.scopes.bind_target(target, &smallvec![Value::Other]),
            Stmt::TypeAlias(ast::StmtTypeAlias { name, .. }) => self.scopes.bind_target(name, &smallvec![Value::Other]),
            Stmt::With(with) => {
                for item in &with.items {
                    if let Some(target) = item.optional_vars.as_deref() {
                        self.assign(target, &item.context_expr);
                    }
                }
            }
            Stmt::Global(global) => {
                if let Some(scope) = self.scopes.stack.last_mut() {
                    scope.globals.extend(global.names.iter().map(|name| name.as_str()));
                }
            }
            Stmt::Nonlocal(nonlocal) => {
                if let Some(scope) = self.scopes.stack.last_mut() {
                    scope.nonlocals.extend(nonlocal.names.iter().map(|name| name.as_str()));
                }
            }
            Stmt::Try(ast::StmtTry { handlers, .. }) => {
                for ast::ExceptHandler::ExceptHandler(handler) in handlers {
                    handler.name.iter().for_each(|name| self.other(name));
                }
            }
            _ => {}
        }
        visitor::walk_stmt(self, stmt);
    }

    fn visit_expr(&mut self, expr: &'a Expr) {
        match expr {
            Expr::Named(named) => {
                self.visit_expr(&named.value);
                self.assign(&named.target, &named.value);
            }
            // The body of a lambda is a scope of its own.
            Expr::Lambda(lambda) => lambda.parameters.iter().for_each(|parameters| self.visit_parameters(parameters)),
            Expr::ListComp(comp) => self.comprehension(&comp.generators, [Some(&comp.elt), None]),
            Expr::SetComp(comp) => self.comprehension(&comp.generators, [Some(&comp.elt), None]),
            Expr::Generator(comp) => self.comprehension(&comp.generators, [Some(&comp.elt), None]),
            Expr::DictComp(comp) => self.comprehension(&comp.generators, [Some(&comp.key), Some(&comp.value)]),
            _ => visitor::walk_expr(self, expr),
        }
    }

    fn visit_pattern(&mut self, pattern: &'a Pattern) {
        match pattern {
            Pattern::MatchAs(ast::PatternMatchAs { name, .. })
            | Pattern::MatchStar(ast::PatternMatchStar { name, .. }) => {
                name.iter().for_each(|name| self.other(name));
            }
            Pattern::MatchMapping(ast::PatternMatchMapping { rest, .. }) => {
                rest.iter().for_each(|name| self.other(name))
            }
            _ => {}
        }
        visitor::walk_pattern(self, pattern);
    }
}
