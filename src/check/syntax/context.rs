//! The scopes that the syntax check is in, as the parser's own semantic checks ask for them.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;

use rustpython_ast::statement_visitor::{StatementVisitor, walk_stmt as walk_statement};
use rustpython_ast::{Parameters, PythonVersion, Stmt};
use rustpython_parser::semantic_errors::{LazyImportContext, SemanticSyntaxContext, SemanticSyntaxError};
use rustpython_text_size::TextRange;

use super::super::Rule;
use super::super::policy::Set;
use super::super::scope::Bindings;
use super::super::source::RawFinding;
use super::ENOUGH;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Module,
    Function { is_async: bool },
    Class,
    Lambda,
    Comprehension { is_async: bool, is_generator: bool },
}

/// A scope that is being walked.
pub(super) struct Scope<'a> {
    pub(super) kind: Kind,
    pub(super) parameters: Set<&'a str>,
    /// Names declared global, and where.
    pub(super) globals: HashMap<&'a str, TextRange>,
    pub(super) nonlocals: Set<&'a str>,
    pub(super) body: &'a [Stmt],
    /// What a function binds, for the `nonlocal` of inner ones.
    pub(super) bindings: OnceCell<Set<&'a str>>,
    /// Loops and other blocks around the statement at hand.
    pub(super) loops: usize,
    pub(super) blocks: usize,
    /// Loops around the innermost `except*`, out of which neither `break` nor `continue` may lead, and which `return` may not
    /// leave; `None` outside of one.
    pub(super) loops_outside_group: Option<usize>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(kind: Kind, parameters: Option<&'a Parameters>, body: &'a [Stmt]) -> Self {
        let parameters =
            parameters.map_or_else(Set::default, |all| all.iter().map(|one| one.name().as_str()).collect());
        let mut declared = Declarations::default();
        declared.visit_body(body);
        Scope {
            kind,
            parameters,
            globals: declared.globals,
            nonlocals: declared.nonlocals,
            body,
            bindings: OnceCell::new(),
            loops: 0,
            blocks: 0,
            loops_outside_group: None,
        }
    }

    fn binds(&self, name: &str) -> bool {
        self.parameters.contains(name)
            || self.bindings.get_or_init(|| Bindings::names(self.body)).contains(name)
                && !self.globals.contains_key(name)
    }
}

/// The `global` and `nonlocal` declarations of one scope.
#[derive(Default)]
struct Declarations<'a> {
    globals: HashMap<&'a str, TextRange>,
    nonlocals: Set<&'a str>,
}

impl<'a> StatementVisitor<'a> for Declarations<'a> {
    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        match stmt {
            Stmt::Global(global) => {
                for name in &global.names {
                    self.globals.entry(name.as_str()).or_insert(name.range);
                }
            }
            Stmt::Nonlocal(nonlocal) => self.nonlocals.extend(nonlocal.names.iter().map(|name| name.as_str())),
            Stmt::FunctionDef(_) | Stmt::ClassDef(_) => {}
            _ => walk_statement(self, stmt),
        }
    }
}

pub(super) struct Context<'a> {
    pub(super) text: &'a str,
    pub(super) future_annotations: bool,
    pub(super) scopes: Vec<Scope<'a>>,
    pub(super) findings: RefCell<Vec<RawFinding>>,
}

impl Context<'_> {
    pub(super) fn add(&self, range: TextRange, message: impl Into<String>) {
        let mut findings = self.findings.borrow_mut();
        if findings.len() < ENOUGH {
            findings.push(RawFinding::new(Rule::Syntax, range, message));
        }
    }

    /// The scope that decides what a statement or expression may do, and those around it.
    pub(super) fn inner_to_outer(&self) -> impl Iterator<Item = Kind> {
        self.scopes.iter().rev().map(|scope| scope.kind)
    }
}

impl SemanticSyntaxContext for Context<'_> {
    fn future_annotations_or_stub(&self) -> bool {
        self.future_annotations
    }

    fn lazy_import_context(&self) -> Option<LazyImportContext> {
        // CPython below 3.15 refuses every lazy import, and the rules treat it as an import.
        None
    }

    fn python_version(&self) -> PythonVersion {
        // The most lenient of those served: the guest's own compiler has the last word.
        PythonVersion::PY313
    }

    fn source(&self) -> &str {
        self.text
    }

    fn global(&self, name: &str) -> Option<TextRange> {
        self.scopes.last()?.globals.get(name).copied()
    }

    fn has_nonlocal_binding(&self, name: &str) -> bool {
        let Some((_, outer)) = self.scopes.split_last() else { return false };
        outer.iter().rev().any(|scope| matches!(scope.kind, Kind::Function { .. } | Kind::Lambda) && scope.binds(name))
    }

    fn in_async_context(&self) -> bool {
        let mut kinds = self.inner_to_outer();
        kinds.find_map(|kind| match kind {
            Kind::Function { is_async } => Some(is_async),
            Kind::Module | Kind::Class | Kind::Lambda => Some(false),
            Kind::Comprehension { .. } => None,
        }) == Some(true)
    }

    fn in_await_allowed_context(&self) -> bool {
        let mut kinds = self.inner_to_outer();
        kinds.find_map(|kind| match kind {
            Kind::Function { .. } | Kind::Lambda => Some(true),
            Kind::Module | Kind::Class => Some(false),
            Kind::Comprehension { .. } => None,
        }) == Some(true)
    }

    fn in_yield_allowed_context(&self) -> bool {
        matches!(self.scopes.last().map(|scope| scope.kind), Some(Kind::Function { .. } | Kind::Lambda))
    }

    fn in_sync_comprehension(&self) -> bool {
        self.inner_to_outer().any(|kind| matches!(kind, Kind::Comprehension { is_async: false, is_generator: false }))
    }

    fn in_module_scope(&self) -> bool {
        self.scopes.len() == 1
    }

    fn in_function_scope(&self) -> bool {
        matches!(self.scopes.last().map(|scope| scope.kind), Some(Kind::Function { .. }))
    }

    fn in_generator_context(&self) -> bool {
        self.inner_to_outer().any(|kind| matches!(kind, Kind::Comprehension { is_generator: true, .. }))
    }

    fn in_notebook(&self) -> bool {
        false
    }

    fn report_semantic_error(&self, error: SemanticSyntaxError) {
        self.add(error.range, error.to_string());
    }

    fn in_loop_context(&self) -> bool {
        self.scopes.last().is_some_and(|scope| scope.loops > 0)
    }

    fn is_bound_parameter(&self, name: &str) -> bool {
        self.scopes.last().is_some_and(|scope| scope.parameters.contains(name))
    }
}
