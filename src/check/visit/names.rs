//! Names, attributes, imports and class definitions.

use rustpython_ast::visitor::Visitor;
use rustpython_ast::{self as ast, Expr, ExprContext, Identifier};
use rustpython_text_size::{Ranged, TextRange};
use smallvec::SmallVec;

use super::{Kind, RawFinding, Rule, Rules, Value, Values};

fn is_dunder(name: &str) -> bool {
    name.len() > 4 && name.starts_with("__") && name.ends_with("__")
}

fn is_private(name: &str) -> bool {
    name.starts_with('_') && !is_dunder(name)
}

impl<'a> Rules<'a, '_> {
    /// A name read, bound or deleted; `as_value` where a module must not stand.
    pub(super) fn judge_name(&mut self, name: &'a ast::ExprName, as_value: bool) {
        if is_dunder(&name.id) {
            self.judge_dunder_name(&name.id, name.range);
        }
        if name.ctx != ExprContext::Load {
            return;
        }
        if self.policy.builtins.contains(&name.id) && !self.is_shadowed(&name.id) {
            // `type` is fine but for what calls make of it.
            if name.id != "type" {
                self.add_builtin(&name.id, name.range);
            }
            return;
        }
        if as_value {
            let values = self.scopes.lookup(&name.id);
            self.judge_value(&name.id, &values, name.range);
        }
    }

    /// What `values`, used as a value, may let slip out of sight.
    fn judge_value(&mut self, name: &str, values: &[Value], range: TextRange) {
        let is_module = values.iter().any(|value| matches!(value, Value::Module(_)))
            && values.iter().all(|value| matches!(value, Value::Module(_) | Value::Nothing));
        if is_module {
            let message = format!("the module '{name}' is used as a value");
            self.add(RawFinding::new(Rule::ModuleValue, range, message).hint("use its members by their names"));
        } else if values.iter().filter_map(Value::path).any(|path| self.is_io_path(path)) {
            let message = format!("'{name}' is used as a value");
            self.add(RawFinding::new(Rule::IoValue, range, message).hint("call it in place, with a literal path"));
        }
    }

    pub(super) fn add_builtin(&mut self, name: &str, range: TextRange) {
        let hint = match name {
            "open" => Some("read inputs with pandas or numpy from /input, write with to_csv and the like to /output"),
            "eval" | "exec" | "compile" => Some("write the code itself"),
            "input" | "breakpoint" | "help" => Some("a run has no terminal"),
            "__import__" => Some("use an import statement"),
            "getattr" | "setattr" | "delattr" => Some("call it in place, with a literal name"),
            "globals" | "locals" | "vars" => Some("use a dict of your own"),
            _ => None,
        };
        let mut finding = RawFinding::new(Rule::Builtin, range, format!("use of builtin '{name}' is not allowed"));
        finding.hint = hint.map(str::to_owned);
        self.add(finding);
    }

    fn judge_dunder_name(&mut self, name: &str, range: TextRange) {
        let in_class = self.scopes.stack.last().is_some_and(|scope| scope.kind == Kind::Class);
        let allowed =
            self.policy.dunders.names.contains(name) || in_class && self.policy.dunders.definitions.contains(name);
        if !allowed {
            self.add(RawFinding::new(Rule::DunderName, range, format!("use of name '{name}' is not allowed")));
        }
    }

    /// A name bound other than by assignment: a parameter, a class, an alias, a capture.
    pub(super) fn judge_identifier(&mut self, name: &Identifier) {
        if is_dunder(name) {
            self.judge_dunder_name(name, name.range);
        }
    }

    /// The name of a function.
    pub(super) fn judge_definition(&mut self, name: &Identifier) {
        if is_dunder(name) && !self.policy.dunders.definitions.contains(name) {
            let message = format!("definition of '{}' is not allowed", name.as_str());
            let hint = "it would run without being called";
            self.add(RawFinding::new(Rule::DunderDefinition, name.range, message).hint(hint));
        }
    }

    pub(super) fn judge_delete(&mut self, target: &Expr) {
        if let Expr::Name(name) = target {
            self.judge_unbinding(&name.id, name.range);
        }
    }

    /// A name that will be unbound, so that a builtin of that name shows through again.
    pub(super) fn judge_unbinding(&mut self, name: &str, range: TextRange) {
        if self.policy.builtins.contains(name) {
            let message = format!("unbinding '{name}' brings back the builtin");
            self.add(RawFinding::new(Rule::Builtin, range, message).hint("choose another name"));
        }
    }

    pub(super) fn judge_class(&mut self, def: &'a ast::StmtClassDef) {
        let Some(arguments) = def.arguments.as_deref() else { return };
        for keyword in &arguments.keywords {
            let plain = keyword.arg.as_ref().is_some_and(|arg| arg != "metaclass");
            let values = self.scopes.eval(&keyword.value);
            let known =
                values.iter().all(|value| value.path().is_some_and(|path| self.policy.metaclasses.contains(path)));
            if keyword.arg.is_none() || !plain && !known {
                self.add(
                    RawFinding::new(Rule::Metaclass, keyword.range, "a metaclass is not allowed")
                        .hint("use a class decorator, or abc.ABC"),
                );
            }
        }
        for base in &arguments.args {
            let values = self.scopes.eval(base);
            let is_metaclass = |path: &str| path == "builtins.type" || self.policy.metaclasses.contains(path);
            if values.iter().filter_map(Value::path).any(is_metaclass) {
                self.add(RawFinding::new(Rule::Metaclass, base.range(), "a metaclass is not allowed"));
            }
        }
    }

    pub(super) fn judge_import(&mut self, import: &'a ast::StmtImport) {
        for alias in &import.names {
            self.judge_module(&alias.name, alias.name.range);
            alias.asname.iter().for_each(|name| self.judge_identifier(name));
            let bound = alias.asname.as_ref().unwrap_or(&alias.name).as_str();
            let declared = self.scopes.stack.last().is_some_and(|scope| scope.globals.contains(bound));
            if self.leaves_scope(bound) && !declared {
                let message = format!("the module '{bound}' leaves its scope");
                let finding = RawFinding::new(Rule::ModuleValue, alias.range, message);
                self.add(finding.hint("import at the top of the file"));
            }
        }
    }

    pub(super) fn judge_import_from(&mut self, import: &'a ast::StmtImportFrom) {
        if import.level > 0 {
            let finding = RawFinding::new(Rule::RelativeImport, import.range, "relative import is not allowed");
            self.add(finding.hint("a strategy is one file"));
            return;
        }
        let Some(module) = &import.module else { return };
        if !self.judge_module(module, module.range) {
            return;
        }
        for alias in &import.names {
            alias.asname.iter().for_each(|name| self.judge_identifier(name));
            if &alias.name == "*" {
                if !self.policy.imports.star.contains(module) {
                    let message = format!("star import from '{}' is not allowed", module.as_str());
                    let finding = RawFinding::new(Rule::StarImport, import.range, message);
                    self.add(finding.hint("import the names that are used"));
                }
            } else {
                self.judge_attribute_name(&alias.name, alias.name.range, false);
                self.judge_member(module, &alias.name, alias.name.range);
            }
        }
    }

    /// A module by its full name; whether it may be imported.
    fn judge_module(&mut self, name: &str, range: TextRange) -> bool {
        let top = name.split('.').next().unwrap_or(name);
        if !self.policy.imports.allow.contains(top) {
            let mut finding = RawFinding::new(Rule::Import, range, format!("import of '{name}' is not allowed"));
            finding.hint = self.policy.imports.hints.get(top).cloned();
            self.add(finding);
            return false;
        }
        let mut end = top.len();
        for part in name.split('.').skip(1) {
            if !self.judge_member(&name[..end], part, range) {
                return false;
            }
            end += 1 + part.len();
        }
        true
    }

    /// The member `name` of a module or of what lies in it; whether it may be reached.
    pub(super) fn judge_member(&mut self, path: &str, name: &str, range: TextRange) -> bool {
        let imports = &self.policy.imports;
        let full = format!("{path}.{name}");
        let is_forbidden = !is_dunder(name) && is_private(name)
            || self.policy.modules.contains(name)
            || imports.members.contains(name)
            || imports.only.get(path).is_some_and(|only| !is_dunder(name) && !only.contains(name))
            || imports.deny.covers(&full);
        if is_forbidden && !path.starts_with("builtins.") {
            let message = format!("use of '{full}' is not allowed");
            let mut finding = RawFinding::new(Rule::ModuleMember, range, message);
            finding.hint = self.policy.imports.hints.get(name).cloned();
            self.add(finding);
        }
        !is_forbidden
    }

    /// A whole chain of attributes, root first; `called` where it is the function of a call that is judged as such. Returns
    /// what the chain may stand for.
    pub(super) fn visit_attribute(&mut self, expr: &'a Expr, called: bool) -> Values {
        let mut chain = SmallVec::<[&ast::ExprAttribute; 8]>::new();
        let mut root = expr;
        while let Expr::Attribute(attribute) = root {
            chain.push(attribute);
            root = &attribute.value;
        }
        chain.reverse();
        let own = matches!(root, Expr::Name(name) if name.id == "self" || name.id == "cls");
        let mut values = self.scopes.eval(root);
        for (index, attribute) in chain.iter().enumerate() {
            let is_last = index + 1 == chain.len();
            let next = chain.get(index + 1).map(|next| next.attr.as_str());
            self.judge_link(attribute, next, &values, own && index == 0);
            values = self.scopes.member_of(values, &attribute.attr);
            if attribute.ctx != ExprContext::Load {
                self.judge_replacement(&values, attribute.range);
            }
            if !(is_last && called) && attribute.ctx == ExprContext::Load {
                self.judge_attribute_value(attribute, &values, own && index == 0);
            }
        }
        // The root of a chain may be a module.
        match root {
            Expr::Name(name) => self.judge_name(name, false),
            _ => self.visit_expr(root),
        }
        values
    }

    /// A member of a module that is bound anew or deleted: what the check trusts must stay what it is.
    fn judge_replacement(&mut self, values: &[Value], range: TextRange) {
        let trusted = |path: &&str| self.policy.io.buffers.contains(path);
        if let Some(path) = values.iter().filter_map(Value::path).find(trusted) {
            let message = format!("assignment to '{path}' is not allowed");
            self.add(RawFinding::new(Rule::ModuleMember, range, message));
        }
    }

    /// One attribute of a chain, on an object that may stand for `values`.
    fn judge_link(&mut self, attribute: &ast::ExprAttribute, next: Option<&str>, values: &[Value], own: bool) {
        let (name, range) = (attribute.attr.as_str(), attribute.attr.range);
        let names_class = name == "__class__" && matches!(next, Some("__name__" | "__qualname__"));
        if is_dunder(name) {
            let dunders = &self.policy.dunders;
            let set = if attribute.ctx == ExprContext::Load { &dunders.attributes } else { &dunders.names };
            if !names_class && !set.contains(name) {
                self.add_attribute(name, range);
            }
            return;
        }
        self.judge_attribute_name(name, range, own);
        for path in values.iter().filter_map(Value::path).filter(|path| !path.starts_with("builtins.")) {
            self.judge_member(path, name, range);
        }
    }

    /// The name of an attribute, whatever its object; `own` for those of `self`.
    pub(super) fn judge_attribute_name(&mut self, name: &str, range: TextRange, own: bool) {
        let forbidden_dunder = is_dunder(name) && !self.policy.dunders.attributes.contains(name);
        if forbidden_dunder || self.policy.attributes.contains(name) || !own && self.policy.modules.contains(name) {
            self.add_attribute(name, range);
        }
    }

    fn add_attribute(&mut self, name: &str, range: TextRange) {
        self.add(RawFinding::new(Rule::Attribute, range, format!("use of attribute '{name}' is not allowed")));
    }

    /// An attribute that is not called in place.
    fn judge_attribute_value(&mut self, attribute: &'a ast::ExprAttribute, values: &[Value], own: bool) {
        let (name, range) = (attribute.attr.as_str(), attribute.attr.range);
        if self.is_io_method(name) || values.iter().filter_map(Value::path).any(|path| self.is_io_path(path)) {
            let finding = RawFinding::new(Rule::IoValue, range, format!("'{name}' is used as a value"));
            self.add(finding.hint("call it in place, with a literal path"));
        } else if self.policy.expressions.has_method(name) && !own {
            let finding = RawFinding::new(Rule::Query, range, format!("'{name}' is used as a value"));
            self.add(finding.hint("call it in place, with a literal expression"));
        } else if matches!(name, "format" | "format_map") && !own {
            self.judge_format_value(attribute);
        }
    }

    pub(super) fn is_io_method(&self, name: &str) -> bool {
        self.policy.io.readers.has_method(name) || self.policy.io.writers.has_method(name)
    }

    pub(super) fn is_io_path(&self, path: &str) -> bool {
        self.policy.io.readers.names(path) || self.policy.io.writers.names(path)
    }

    /// Whether a string spells a name that may not be used as an attribute.
    pub(super) fn is_forbidden_attribute(&self, name: &str) -> bool {
        is_dunder(name) && !self.policy.dunders.attributes.contains(name) || self.is_forbidden_name(name)
    }

    /// The same without dunders, of which strings hold harmless ones too (`"__main__"`).
    pub(super) fn is_forbidden_name(&self, name: &str) -> bool {
        self.policy.attributes.contains(name) || self.is_io_method(name)
    }
}
