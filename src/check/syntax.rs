//! Refuses what CPython would not compile: the parser's own errors, and those that need scopes, which CPython finds in its
//! symbol table and compiler (`return` outside a function, `nonlocal` in a module, `break` outside a loop ...).

mod context;

use std::cell::RefCell;

use rustpython_ast::token::TokenKind;
use rustpython_ast::visitor::{self, Visitor};
use rustpython_ast::{self as ast, Expr, ModModule, Stmt};
use rustpython_parser::Parsed;
use rustpython_parser::semantic_errors::SemanticSyntaxChecker;
use rustpython_text_size::Ranged;
use unicode_normalization::UnicodeNormalization;

use super::Rule;
use super::source::RawFinding;
use context::{Context, Kind, Scope};

/// Findings after which the syntax of a source is looked at no further.
const ENOUGH: usize = 100;

/// Type parameters of one definition; the parser's check of duplicates is quadratic in them.
const TYPE_PARAMETERS: usize = 64;

/// Statically nested blocks, as in CPython (`CO_MAXBLOCKS`).
const BLOCKS: usize = 20;

/// Format specifications in format specifications, as in CPython from 3.12 on.
const FORMAT_SPECS: usize = 2;

/// Every reason why CPython, or this check, would not take the source as Python.
pub(super) fn errors(text: &str, parsed: &Parsed<ModModule>) -> Vec<RawFinding> {
    let mut findings = disguised(text, parsed);
    if !parsed.errors().is_empty() {
        let errors = parsed.errors().iter().take(ENOUGH);
        findings.extend(errors.map(|error| RawFinding::new(Rule::Syntax, error.location, error.error.to_string())));
        return findings;
    }
    let mut checker = Checker {
        semantic: SemanticSyntaxChecker::new(),
        context: Context {
            text,
            future_annotations: imports_future_annotations(parsed.suite()),
            scopes: vec![Scope::new(Kind::Module, None, parsed.suite())],
            findings: RefCell::new(findings),
        },
        iterables: 0,
        format_specs: 0,
    };
    checker.visit_body(parsed.suite());
    checker.context.findings.into_inner()
}

/// Identifiers that are not ASCII, but that Python normalises (NFKC) to an ASCII name or keyword.
fn disguised(text: &str, parsed: &Parsed<ModModule>) -> Vec<RawFinding> {
    if text.is_ascii() {
        return Vec::new();
    }
    let identifiers =
        parsed.tokens().iter().filter(|token| token.kind() == TokenKind::Name || token.kind().is_keyword());
    identifiers
        .filter_map(|token| {
            let written = &text[token.range()];
            if written.is_ascii() {
                return None;
            }
            let read: String = written.nfkc().collect();
            let message = format!("the identifier '{written}' is read as '{read}'");
            let hint = "write identifiers in their plain form";
            read.is_ascii().then(|| RawFinding::new(Rule::Identifier, token.range(), message).hint(hint))
        })
        .take(ENOUGH)
        .collect()
}

fn imports_future_annotations(body: &[Stmt]) -> bool {
    body.iter().any(|stmt| {
        stmt.as_import_from_stmt().is_some_and(|import| {
            import.module.as_deref() == Some("__future__")
                && import.names.iter().any(|name| &name.name == "annotations")
        })
    })
}

struct Checker<'a> {
    semantic: SemanticSyntaxChecker,
    context: Context<'a>,
    /// Iterables of comprehensions around the expression at hand.
    iterables: usize,
    /// Format specifications around it.
    format_specs: usize,
}

impl<'a> Checker<'a> {
    fn within(&mut self, scope: Scope<'a>, walk: impl FnOnce(&mut Self)) {
        self.context.scopes.push(scope);
        walk(self);
        self.context.scopes.pop();
    }

    fn in_block(&mut self, stmt: &Stmt, is_loop: bool, walk: impl FnOnce(&mut Self)) {
        if let Some(scope) = self.context.scopes.last_mut() {
            scope.blocks += 1;
            scope.loops += usize::from(is_loop);
            if scope.blocks > BLOCKS {
                self.context.add(stmt.range(), "too many statically nested blocks");
            }
        }
        walk(self);
        if let Some(scope) = self.context.scopes.last_mut() {
            scope.blocks -= 1;
            scope.loops -= usize::from(is_loop);
        }
    }

    fn type_parameters_bounded(&self, stmt: &Stmt) -> bool {
        let type_params = match stmt {
            Stmt::FunctionDef(def) => def.type_params.as_deref(),
            Stmt::ClassDef(def) => def.type_params.as_deref(),
            Stmt::TypeAlias(def) => def.type_params.as_deref(),
            _ => None,
        };
        let Some(many) = type_params.filter(|params| params.len() > TYPE_PARAMETERS) else { return true };
        self.context.findings.borrow_mut().push(RawFinding::new(
            Rule::Complexity,
            many.range,
            format!("more than {TYPE_PARAMETERS} type parameters"),
        ));
        false
    }

    fn visit_comprehension_scope(
        &mut self,
        is_generator: bool,
        generators: &'a [ast::Comprehension],
        elements: &[&'a Expr],
    ) {
        let Some((first, rest)) = generators.split_first() else { return };
        for element in elements.iter().filter(|element| element.is_starred_expr()) {
            self.context.add(element.range(), "iterable unpacking cannot be used in a comprehension");
        }
        // The first iterable is evaluated outside.
        self.visit_iterable(&first.iter);
        let is_async = generators.iter().any(|generator| generator.is_async);
        self.within(Scope::new(Kind::Comprehension { is_async, is_generator }, None, &[]), |checker| {
            checker.visit_expr(&first.target);
            first.ifs.iter().for_each(|test| checker.visit_expr(test));
            rest.iter().for_each(|generator| checker.visit_comprehension(generator));
            elements.iter().for_each(|element| checker.visit_expr(element));
        });
    }
}

impl<'a> Checker<'a> {
    fn visit_groups(&mut self, handlers: &'a [ast::ExceptHandler]) {
        let outside = self.context.scopes.last_mut().map(|scope| scope.loops_outside_group.replace(scope.loops));
        handlers.iter().for_each(|handler| self.visit_except_handler(handler));
        if let (Some(scope), Some(outside)) = (self.context.scopes.last_mut(), outside) {
            scope.loops_outside_group = outside;
        }
    }

    fn visit_iterable(&mut self, iterable: &'a Expr) {
        self.iterables += 1;
        self.visit_expr(iterable);
        self.iterables -= 1;
    }

    /// What the parser's own checks leave out, for one statement.
    fn check_stmt(&self, stmt: &'a Stmt) {
        let context = &self.context;
        let scope = context.scopes.last();
        let leaves_group = |within: bool| scope.is_some_and(|scope| scope.loops_outside_group.is_some() && within);
        let same_loops = scope.is_some_and(|scope| scope.loops_outside_group == Some(scope.loops));
        match stmt {
            Stmt::Break(_) | Stmt::Continue(_) | Stmt::Return(_)
                if leaves_group(same_loops || stmt.is_return_stmt()) =>
            {
                context.add(stmt.range(), "'break', 'continue' and 'return' cannot appear in an 'except*' block");
            }
            Stmt::Try(ast::StmtTry { handlers, .. }) => {
                for handler in handlers.iter().rev().skip(1) {
                    let ast::ExceptHandler::ExceptHandler(handler) = handler;
                    if handler.type_.is_none() {
                        context.add(handler.range, "default 'except:' must be last");
                    }
                }
            }
            Stmt::ImportFrom(import)
                if context.text[import.range].ends_with(')') && import.names.iter().any(|alias| &alias.name == "*") =>
            {
                context.add(import.range, "star import in parentheses");
            }
            Stmt::AnnAssign(ast::StmtAnnAssign { target, .. }) => {
                let nonlocal = target
                    .as_name_expr()
                    .filter(|name| scope.is_some_and(|scope| scope.nonlocals.contains(name.id.as_str())));
                if let Some(name) = nonlocal {
                    context.add(name.range, format!("annotated name '{}' can't be nonlocal", name.id));
                }
            }
            _ => {}
        }
    }

    /// What the parser's own checks leave out, for one expression.
    fn check_expr(&self, expr: &'a Expr) {
        let context = &self.context;
        match expr {
            Expr::Attribute(attribute) if &attribute.attr == "__debug__" && !attribute.ctx.is_load() => {
                context.add(attribute.range, "cannot assign to __debug__");
            }
            Expr::Named(named) => {
                if self.iterables > 0 {
                    context.add(named.range, "assignment expression in the iterable of a comprehension");
                }
                let mut outer = context.inner_to_outer().skip_while(|kind| matches!(kind, Kind::Comprehension { .. }));
                let in_comprehension = matches!(context.inner_to_outer().next(), Some(Kind::Comprehension { .. }));
                if in_comprehension && outer.next() == Some(Kind::Class) {
                    context.add(named.range, "assignment expression in a comprehension of a class body");
                }
            }
            _ => {}
        }
    }
}

impl<'a> Visitor<'a> for Checker<'a> {
    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        if !self.type_parameters_bounded(stmt) {
            return;
        }
        self.semantic.visit_stmt(stmt, &self.context);
        self.check_stmt(stmt);
        match stmt {
            Stmt::FunctionDef(def) => {
                def.decorator_list.iter().for_each(|decorator| self.visit_decorator(decorator));
                def.type_params.iter().for_each(|params| self.visit_type_params(params));
                self.visit_parameters(&def.parameters);
                def.returns.iter().for_each(|returns| self.visit_annotation(returns));
                let kind = Kind::Function { is_async: def.is_async };
                self.within(Scope::new(kind, Some(&def.parameters), &def.body), |checker| {
                    checker.visit_body(&def.body)
                });
            }
            Stmt::ClassDef(def) => {
                def.decorator_list.iter().for_each(|decorator| self.visit_decorator(decorator));
                def.type_params.iter().for_each(|params| self.visit_type_params(params));
                def.arguments.iter().for_each(|arguments| self.visit_arguments(arguments));
                self.within(Scope::new(Kind::Class, None, &def.body), |checker| checker.visit_body(&def.body));
            }
            Stmt::For(ast::StmtFor { target, iter, body, orelse, .. }) => {
                self.visit_expr(iter);
                self.visit_expr(target);
                self.in_block(stmt, true, |checker| checker.visit_body(body));
                self.visit_body(orelse);
            }
            Stmt::While(ast::StmtWhile { test, body, orelse, .. }) => {
                self.visit_expr(test);
                self.in_block(stmt, true, |checker| checker.visit_body(body));
                self.visit_body(orelse);
            }
            Stmt::Try(ast::StmtTry { body, handlers, orelse, finalbody, is_star: true, .. }) => {
                self.in_block(stmt, false, |checker| {
                    checker.visit_body(body);
                    checker.visit_groups(handlers);
                    checker.visit_body(orelse);
                    checker.visit_body(finalbody);
                });
            }
            Stmt::With(_) | Stmt::Try(_) => {
                self.in_block(stmt, false, |checker| visitor::walk_stmt(checker, stmt));
            }
            _ => visitor::walk_stmt(self, stmt),
        }
    }

    fn visit_expr(&mut self, expr: &'a Expr) {
        self.semantic.visit_expr(expr, &self.context);
        self.check_expr(expr);
        match expr {
            Expr::Lambda(lambda) => {
                lambda.parameters.iter().for_each(|parameters| self.visit_parameters(parameters));
                let scope = Scope::new(Kind::Lambda, lambda.parameters.as_deref(), &[]);
                self.within(scope, |checker| checker.visit_expr(&lambda.body));
            }
            Expr::ListComp(comp) => self.visit_comprehension_scope(false, &comp.generators, &[&comp.elt]),
            Expr::SetComp(comp) => self.visit_comprehension_scope(false, &comp.generators, &[&comp.elt]),
            Expr::DictComp(comp) => {
                self.visit_comprehension_scope(false, &comp.generators, &[&comp.key, &comp.value]);
            }
            Expr::Generator(comp) => self.visit_comprehension_scope(true, &comp.generators, &[&comp.elt]),
            _ => visitor::walk_expr(self, expr),
        }
    }

    fn visit_keyword(&mut self, keyword: &'a ast::Keyword) {
        if keyword.arg.as_deref() == Some("__debug__") {
            self.context.add(keyword.range, "cannot assign to __debug__");
        }
        visitor::walk_keyword(self, keyword);
    }

    fn visit_interpolated_string_element(&mut self, element: &'a ast::InterpolatedStringElement) {
        let ast::InterpolatedStringElement::Interpolation(interpolation) = element else { return };
        if interpolation.expression.is_starred_expr() {
            self.context.add(interpolation.range, "cannot use a starred expression here");
        }
        self.visit_expr(&interpolation.expression);
        let Some(spec) = &interpolation.format_spec else { return };
        self.format_specs += 1;
        if self.format_specs > FORMAT_SPECS {
            self.context.add(spec.range, "f-string: expressions nested too deeply");
        }
        spec.elements.iter().for_each(|element| self.visit_interpolated_string_element(element));
        self.format_specs -= 1;
    }

    fn visit_pattern(&mut self, pattern: &'a ast::Pattern) {
        match pattern {
            ast::Pattern::MatchSequence(sequence) => {
                for extra in sequence.patterns.iter().filter(|pattern| pattern.is_match_star()).skip(1) {
                    self.context.add(extra.range(), "multiple starred expressions in a sequence pattern");
                }
            }
            ast::Pattern::MatchAs(ast::PatternMatchAs { pattern: Some(_), name: Some(name), .. }) if name == "_" => {
                self.context.add(name.range, "cannot use '_' as a target");
            }
            _ => {}
        }
        visitor::walk_pattern(self, pattern);
    }
}
