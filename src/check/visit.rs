//! The walk that applies the rules: every statement and expression, scope by scope.
//!
//! `names` judges names, attributes and imports, `calls` what is called with what, `strings` the text of literals.

mod calls;
mod names;
mod strings;

use rustpython_ast::visitor::{self, Visitor};
use rustpython_ast::{self as ast, Expr, Parameters, Pattern, Stmt};
use rustpython_text_size::Ranged;
use smallvec::smallvec;

use super::Rule;
use super::policy::Policy;
use super::scope::{Kind, Scope, Scopes, Value, Values};
use super::source::RawFinding;

/// Every breach of `policy` in a module.
pub(super) fn findings(body: &[Stmt], policy: &Policy) -> Vec<RawFinding> {
    let scopes = Scopes { policy, stack: Vec::new(), overflowing: Vec::new() };
    let mut rules = Rules { policy, scopes, shadows: Vec::new(), findings: Vec::new() };
    rules.within(Kind::Module, None, body, |rules| rules.visit_body(body));
    for range in std::mem::take(&mut rules.scopes.overflowing) {
        rules.add(RawFinding::new(Rule::Complexity, range, "the name stands for too many things"));
    }
    rules.findings
}

/// The state of the walk.
struct Rules<'a, 'p> {
    policy: &'p Policy,
    scopes: Scopes<'a, 'p>,
    /// What is known of names that are also builtins; the last entry of a name counts.
    shadows: Vec<Shadow<'a>>,
    findings: Vec<RawFinding>,
}

/// Whether a name that is also a builtin surely stands for something else.
struct Shadow<'a> {
    name: &'a str,
    bound: bool,
    /// Index of the scope that says so: inner functions do not see what a class body binds.
    scope: usize,
}

impl<'a> Rules<'a, '_> {
    fn add(&mut self, finding: RawFinding) {
        // One more than reported, so that the report knows that there were more.
        if self.findings.len() <= self.policy.limits.findings * 4 {
            self.findings.push(finding);
        }
    }

    /// Walks in a new scope.
    fn within(
        &mut self,
        kind: Kind,
        parameters: Option<&'a Parameters>,
        body: &'a [Stmt],
        walk: impl FnOnce(&mut Self),
    ) {
        self.scopes.stack.push(Scope::new(kind));
        self.scopes.collect(parameters, body);
        self.in_scope(kind, walk);
    }

    /// Walks in the scope just pushed and read, and leaves it.
    fn in_scope(&mut self, kind: Kind, walk: impl FnOnce(&mut Self)) {
        let shadows = self.shadows.len();
        if let Some(scope) = self.scopes.stack.last() {
            // A function's names are its own throughout. A class body looks up a name that it has not bound yet outside of
            // all functions; a module, among the builtins.
            let bound = scope.names.keys().copied().filter(|name| self.policy.builtins.contains(name));
            let at = self.scopes.stack.len() - 1;
            let is_function = kind == Kind::Function;
            self.shadows.extend(bound.map(|name| Shadow { name, bound: is_function, scope: at }));
        }
        walk(self);
        self.shadows.truncate(shadows);
        self.scopes.stack.pop();
    }

    /// Notes that from here on `target` is bound, up to the end of the enclosing body.
    fn shadow_target(&mut self, target: &'a Expr) {
        match target {
            Expr::Name(name) => self.shadow(&name.id),
            Expr::Tuple(ast::ExprTuple { elts, .. }) | Expr::List(ast::ExprList { elts, .. }) => {
                elts.iter().for_each(|target| self.shadow_target(target));
            }
            Expr::Starred(starred) => self.shadow_target(&starred.value),
            _ => {}
        }
    }

    fn shadow(&mut self, name: &'a str) {
        let declared_elsewhere = self.scopes.stack.last().is_some_and(|scope| scope.globals.contains(name));
        if self.policy.builtins.contains(name) && !declared_elsewhere {
            self.shadows.push(Shadow { name, bound: true, scope: self.scopes.stack.len() - 1 });
        }
    }

    /// Whether `name` surely is not the builtin.
    fn is_shadowed(&self, name: &str) -> bool {
        let innermost = self.scopes.stack.len() - 1;
        let seen = |scope: usize| scope == innermost || self.scopes.stack[scope].kind != Kind::Class;
        let last = self.shadows.iter().rev().find(|shadow| shadow.name == name && seen(shadow.scope));
        last.is_some_and(|shadow| shadow.bound)
    }

    /// Walks an expression of which only the truth or identity is used: a module may stand there.
    fn visit_test(&mut self, expr: &'a Expr) {
        match expr {
            Expr::Name(name) => self.judge_name(name, false),
            Expr::UnaryOp(unary) if unary.op == ast::UnaryOp::Not => self.visit_test(&unary.operand),
            Expr::BoolOp(all) => all.values.iter().for_each(|value| self.visit_test(value)),
            _ => self.visit_expr(expr),
        }
    }

    fn visit_function(&mut self, def: &'a ast::StmtFunctionDef) {
        def.decorator_list.iter().for_each(|decorator| self.visit_decorator(decorator));
        def.type_params.iter().for_each(|params| self.visit_type_params(params));
        self.visit_parameters(&def.parameters);
        def.returns.iter().for_each(|returns| self.visit_annotation(returns));
        self.judge_definition(&def.name);
        self.within(Kind::Function, Some(&def.parameters), &def.body, |rules| rules.visit_body(&def.body));
    }

    fn visit_class(&mut self, def: &'a ast::StmtClassDef) {
        def.decorator_list.iter().for_each(|decorator| self.visit_decorator(decorator));
        def.type_params.iter().for_each(|params| self.visit_type_params(params));
        self.judge_identifier(&def.name);
        self.judge_class(def);
        def.arguments.iter().for_each(|arguments| self.visit_arguments(arguments));
        self.within(Kind::Class, None, &def.body, |rules| rules.visit_body(&def.body));
    }

    fn visit_comprehension_scope(&mut self, generators: &'a [ast::Comprehension], elements: [Option<&'a Expr>; 2]) {
        let Some((first, rest)) = generators.split_first() else { return };
        self.visit_expr(&first.iter);
        self.scopes.stack.push(Scope::new(Kind::Function));
        for generator in generators {
            self.scopes.bind_target(&generator.target, &smallvec![Value::Other]);
        }
        self.in_scope(Kind::Function, |rules| {
            rules.visit_expr(&first.target);
            first.ifs.iter().for_each(|test| rules.visit_test(test));
            rest.iter().for_each(|generator| rules.visit_comprehension(generator));
            elements.into_iter().flatten().for_each(|element| rules.visit_expr(element));
        });
    }

    fn visit_assign(&mut self, targets: &'a [Expr], value: &'a Expr) {
        // A plain alias of a module is followed by the scopes.
        let is_alias = value.is_name_expr() && {
            let values = self.scopes.eval(value);
            targets.iter().all(|target| self.is_followed(target, &values))
        };
        match value {
            Expr::Name(name) if is_alias => self.judge_name(name, false),
            _ => self.visit_expr(value),
        }
        for target in targets {
            self.visit_expr(target);
            self.shadow_target(target);
        }
    }

    /// Whether the scopes know that `target` may stand for the modules and members among `values`, wherever it is used.
    fn is_followed(&self, target: &Expr, values: &Values) -> bool {
        let (Expr::Name(target), Some(scope)) = (target, self.scopes.stack.last()) else { return false };
        let name = target.id.as_str();
        let known = scope.names.get(name);
        !self.leaves_scope(name)
            && values
                .iter()
                .filter(|value| value.path().is_some())
                .all(|value| known.is_some_and(|known| known.contains(value)))
    }

    /// Whether what is bound to `name` here is seen where the scopes do not follow it: as an attribute of a class, or as a
    /// name of another scope.
    fn leaves_scope(&self, name: &str) -> bool {
        self.scopes.stack.last().is_some_and(|scope| {
            scope.kind == Kind::Class || scope.nonlocals.contains(name) || scope.globals.contains(name)
        })
    }

    fn visit_documentation(&mut self, stmt: &'a Stmt) -> bool {
        // The text of a statement that is nothing but a string is never used, but for `__doc__`, which only reads.
        matches!(stmt, Stmt::Expr(ast::StmtExpr { value, .. }) if value.is_string_literal_expr())
    }

    fn visit_simple(&mut self, stmt: &'a Stmt) {
        match stmt {
            Stmt::Assign(assign) => self.visit_assign(&assign.targets, &assign.value),
            Stmt::AnnAssign(ast::StmtAnnAssign { target, annotation, value: Some(value), .. }) => {
                self.visit_annotation(annotation);
                self.visit_assign(std::slice::from_ref(target), value);
            }
            Stmt::Assert(ast::StmtAssert { test, msg, .. }) => {
                self.visit_test(test);
                msg.iter().for_each(|msg| self.visit_expr(msg));
            }
            Stmt::Delete(delete) => {
                for target in &delete.targets {
                    self.judge_delete(target);
                    self.visit_test(target);
                }
            }
            Stmt::Import(import) => {
                self.judge_import(import);
                import.names.iter().for_each(|alias| {
                    let bound = alias.asname.as_ref().unwrap_or(&alias.name);
                    self.shadow(bound.as_str());
                });
            }
            Stmt::ImportFrom(import) => {
                self.judge_import_from(import);
                import.names.iter().for_each(|alias| {
                    let bound = alias.asname.as_ref().unwrap_or(&alias.name);
                    self.shadow(bound.as_str());
                });
            }
            _ => visitor::walk_stmt(self, stmt),
        }
    }
}

impl<'a> Visitor<'a> for Rules<'a, '_> {
    fn visit_body(&mut self, body: &'a [Stmt]) {
        let shadows = self.shadows.len();
        body.iter().for_each(|stmt| self.visit_stmt(stmt));
        self.shadows.truncate(shadows);
    }

    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        if self.visit_documentation(stmt) {
            return;
        }
        match stmt {
            Stmt::FunctionDef(def) => {
                self.visit_function(def);
                self.shadow(&def.name);
            }
            Stmt::ClassDef(def) => {
                self.visit_class(def);
                self.shadow(&def.name);
            }
            Stmt::If(ast::StmtIf { test, body, elif_else_clauses, .. }) => {
                self.visit_test(test);
                self.visit_body(body);
                for clause in elif_else_clauses {
                    clause.test.iter().for_each(|test| self.visit_test(test));
                    self.visit_body(&clause.body);
                }
            }
            Stmt::While(ast::StmtWhile { test, body, orelse, .. }) => {
                self.visit_test(test);
                self.visit_body(body);
                self.visit_body(orelse);
            }
            Stmt::For(ast::StmtFor { target, iter, body, orelse, .. }) => {
                self.visit_expr(iter);
                self.visit_expr(target);
                let shadows = self.shadows.len();
                self.shadow_target(target);
                self.visit_body(body);
                self.shadows.truncate(shadows);
                self.visit_body(orelse);
            }
            Stmt::With(ast::StmtWith { items, body, .. }) => {
                let shadows = self.shadows.len();
                for item in items {
                    self.visit_with_item(item);
                    item.optional_vars.iter().for_each(|target| self.shadow_target(target));
                }
                self.visit_body(body);
                self.shadows.truncate(shadows);
            }
            _ => self.visit_simple(stmt),
        }
    }

    fn visit_expr(&mut self, expr: &'a Expr) {
        match expr {
            Expr::Name(name) => self.judge_name(name, true),
            Expr::Attribute(_) => _ = self.visit_attribute(expr, false),
            Expr::Call(call) => self.visit_call(call),
            Expr::StringLiteral(literal) => self.judge_text(literal.value.to_str(), literal.range),
            Expr::FString(_) => {
                self.judge_folded(expr);
                visitor::walk_expr(self, expr);
            }
            Expr::BinOp(_) => {
                self.judge_folded(expr);
                self.visit_operands(expr);
            }
            // Any other comparison calls methods of the script with the module.
            Expr::Compare(compare) if compare.ops.iter().all(|op| matches!(op, ast::CmpOp::Is | ast::CmpOp::IsNot)) => {
                self.visit_test(&compare.left);
                compare.comparators.iter().for_each(|value| self.visit_test(value));
            }
            Expr::UnaryOp(unary) if unary.op == ast::UnaryOp::Not => self.visit_test(&unary.operand),
            Expr::If(ast::ExprIf { test, body, orelse, .. }) => {
                self.visit_test(test);
                self.visit_expr(body);
                self.visit_expr(orelse);
            }
            Expr::Named(named) => {
                // Where the scopes follow it as they follow an assignment, it is an alias.
                match &*named.value {
                    Expr::Name(name) if self.is_followed(&named.target, &self.scopes.lookup(&name.id)) => {
                        self.judge_name(name, false);
                    }
                    _ => self.visit_expr(&named.value),
                }
                self.visit_expr(&named.target);
            }
            Expr::Lambda(lambda) => {
                lambda.parameters.iter().for_each(|parameters| self.visit_parameters(parameters));
                self.scopes.stack.push(Scope::new(Kind::Function));
                self.scopes.collect(lambda.parameters.as_deref(), &[]);
                self.scopes.collect_expr(&lambda.body);
                self.in_scope(Kind::Function, |rules| rules.visit_expr(&lambda.body));
            }
            Expr::ListComp(comp) => self.visit_comprehension_scope(&comp.generators, [Some(&comp.elt), None]),
            Expr::SetComp(comp) => self.visit_comprehension_scope(&comp.generators, [Some(&comp.elt), None]),
            Expr::Generator(comp) => self.visit_comprehension_scope(&comp.generators, [Some(&comp.elt), None]),
            Expr::DictComp(comp) => {
                self.visit_comprehension_scope(&comp.generators, [Some(&comp.key), Some(&comp.value)])
            }
            _ => visitor::walk_expr(self, expr),
        }
    }

    fn visit_annotation(&mut self, annotation: &'a Expr) {
        self.judge_annotation(annotation);
        visitor::walk_annotation(self, annotation);
    }

    fn visit_parameter(&mut self, parameter: &'a ast::Parameter) {
        self.judge_identifier(&parameter.name);
        visitor::walk_parameter(self, parameter);
    }

    fn visit_except_handler(&mut self, handler: &'a ast::ExceptHandler) {
        let ast::ExceptHandler::ExceptHandler(inner) = handler;
        if let Some(name) = &inner.name {
            self.judge_unbinding(name.as_str(), name.range);
        }
        visitor::walk_except_handler(self, handler);
    }

    fn visit_interpolated_string_element(&mut self, element: &'a ast::InterpolatedStringElement) {
        if let ast::InterpolatedStringElement::Literal(literal) = element {
            self.judge_text(&literal.value, literal.range);
        }
        visitor::walk_interpolated_string_element(self, element);
    }

    fn visit_string_literal(&mut self, literal: &'a ast::StringLiteral) {
        self.judge_text(literal.as_str(), literal.range);
    }

    fn visit_pattern(&mut self, pattern: &'a Pattern) {
        match pattern {
            Pattern::MatchAs(ast::PatternMatchAs { name: Some(name), .. })
            | Pattern::MatchStar(ast::PatternMatchStar { name: Some(name), .. })
            | Pattern::MatchMapping(ast::PatternMatchMapping { rest: Some(name), .. }) => self.judge_identifier(name),
            _ => {}
        }
        visitor::walk_pattern(self, pattern);
    }

    fn visit_pattern_keyword(&mut self, keyword: &'a ast::PatternKeyword) {
        // `case object(name=x)` reads the attribute.
        self.judge_attribute_name(&keyword.attr, keyword.attr.range, false);
        visitor::walk_pattern_keyword(self, keyword);
    }
}

impl<'a> Rules<'a, '_> {
    /// Walks the operands of a chain of binary operators, each text folded once.
    fn visit_operands(&mut self, mut expr: &'a Expr) {
        let mut right = Vec::new();
        while let Expr::BinOp(chain) = expr {
            right.push(&*chain.right);
            expr = &chain.left;
        }
        self.visit_expr(expr);
        right.into_iter().rev().for_each(|operand| self.visit_expr(operand));
    }

    /// Judges the whole text of an expression that is made of constant strings.
    fn judge_folded(&mut self, expr: &'a Expr) {
        for value in self.scopes.eval(expr) {
            if let Value::Text(text) = value {
                self.judge_text(&text, expr.range());
            }
        }
    }
}
