//! The text of literals: names spelt in strings, format strings, query expressions.

use rustpython_ast as ast;
use rustpython_ast::Expr;
use rustpython_text_size::{Ranged, TextRange};

use super::super::scope::texts;
use super::{RawFinding, Rule, Rules, Value};

/// The words of a text: runs of letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

impl<'a> Rules<'a, '_> {
    /// A string that holds a forbidden dunder, or is nothing but a forbidden name.
    pub(super) fn judge_text(&mut self, text: &str, range: TextRange) {
        let dunder = text.contains("__").then(|| words(text).find(|word| self.policy.strings.contains(word))).flatten();
        let name = dunder.or_else(|| (text.contains('_') && self.is_forbidden_name(text)).then_some(text));
        if let Some(name) = name {
            self.add(RawFinding::new(
                Rule::NameInString,
                range,
                format!("the string spells the forbidden name '{name}'"),
            ));
        }
    }

    /// A string among annotations, which some libraries evaluate (`functools.singledispatch`).
    pub(super) fn judge_annotation(&mut self, annotation: &'a Expr) {
        let Expr::StringLiteral(literal) = annotation else { return };
        let text = literal.value.to_str();
        let runs = text.contains(['(', '.']);
        if let Some(word) = runs.then(|| self.forbidden_word(text)).flatten() {
            let message = format!("the annotation uses the forbidden name '{word}'");
            self.add(RawFinding::new(Rule::NameInString, literal.range, message));
        }
    }

    /// `receiver.format(...)` and `receiver.format_map(...)`.
    pub(super) fn judge_format(&mut self, receiver: &'a Expr, arguments: &ast::Arguments, range: TextRange) {
        let values = self.scopes.eval(receiver);
        match texts(&values) {
            Some(templates) => {
                for template in templates {
                    self.judge_template(template, range);
                }
            }
            // pandas' Styler.format and the like take formats, not objects.
            None if are_literals(arguments) => {}
            None => self.add(
                RawFinding::new(Rule::FormatString, range, "format of a string that is not a literal is not allowed")
                    .hint("use an f-string"),
            ),
        }
    }

    /// `receiver.format` that is handed around, as in `series.map("{:.2f}".format)`.
    pub(super) fn judge_format_value(&mut self, attribute: &'a ast::ExprAttribute) {
        let values = self.scopes.eval(&attribute.value);
        let range = attribute.range;
        match texts(&values) {
            Some(templates) => {
                for template in templates {
                    self.judge_template(template, range);
                }
            }
            None => self.add(
                RawFinding::new(Rule::FormatString, range, "format of a string that is not a literal is not allowed")
                    .hint("use an f-string"),
            ),
        }
    }

    /// A format string must not read private attributes: `{0.__class__}`, `{x[_y]}`; nor nest fields that do.
    fn judge_template(&mut self, template: &str, range: TextRange) {
        let reads_private = template.split('{').skip(1).any(|field| {
            let field = field.split(['}', ':', '!']).next().unwrap_or(field);
            field.match_indices(['.', '[']).any(|(at, _)| {
                let name = field[at + 1..].split(['.', '[', ']']).next().unwrap_or_default();
                name.starts_with('_') || self.is_forbidden_attribute(name) || self.policy.modules.contains(name)
            })
        });
        if reads_private {
            let finding = RawFinding::new(Rule::FormatString, range, "the format string reads a forbidden attribute");
            self.add(finding.hint("use an f-string"));
        }
    }

    /// `object.query(...)`, `object.eval(...)`.
    pub(super) fn judge_expression(&mut self, arguments: &'a ast::Arguments, range: TextRange) {
        let keyword = arguments.find_keyword("expr").or_else(|| arguments.find_keyword("formula"));
        let keyword = keyword.map(|keyword| &keyword.value);
        let Some(expression) = arguments.args.first().or(keyword) else {
            if arguments.keywords.iter().any(|keyword| keyword.arg.is_none()) {
                self.add_query(range);
            }
            return;
        };
        let values = self.scopes.eval(expression);
        let Some(expressions) = texts(&values) else { return self.add_query(range) };
        for text in expressions {
            if let Some(word) = self.escape(text) {
                let message = format!("the expression reaches out of the table through '{word}'");
                let finding = RawFinding::new(Rule::Query, expression.range(), message);
                self.add(finding.hint("use columns, constants and plain @variables"));
            }
        }
    }

    fn add_query(&mut self, range: TextRange) {
        let finding = RawFinding::new(Rule::Query, range, "query or eval of something other than a string literal");
        self.add(finding.hint("write the expression as a literal with @variables, or use a boolean mask"));
    }

    /// A name in a piece of code that may not be used there.
    fn forbidden_word<'t>(&self, text: &'t str) -> Option<&'t str> {
        words(text).find(|word| {
            word.starts_with("__")
                || self.is_forbidden_attribute(word)
                || self.policy.modules.contains(word)
                || *word != "type" && is_called(text, word) && self.policy.builtins.contains(word)
        })
    }

    /// What makes a query expression more than columns, constants and plain variables.
    fn escape<'t>(&self, text: &'t str) -> Option<&'t str> {
        self.forbidden_word(text).or_else(|| {
            text.match_indices('@').find_map(|(at, _)| {
                let rest = text[at + 1..].trim_start();
                let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
                let (variable, after) = rest.split_at(end);
                let reaches = after.trim_start().starts_with(['.', '(', '[']);
                let is_module = self.scopes.lookup(variable).iter().any(|value| matches!(value, Value::Module(_)));
                (variable.is_empty() || reaches || is_module).then_some(if variable.is_empty() {
                    "@"
                } else {
                    variable
                })
            })
        })
    }
}

/// Whether a call is given nothing but literals, so that there is no object to reach into.
fn are_literals(arguments: &ast::Arguments) -> bool {
    fn is_literal(expr: &Expr) -> bool {
        match expr {
            Expr::Dict(dict) => dict.items.iter().all(|item| item.key.is_some() && is_literal(&item.value)),
            _ => expr.is_literal_expr(),
        }
    }
    arguments.args.iter().all(is_literal)
        && arguments.keywords.iter().all(|keyword| keyword.arg.is_some() && is_literal(&keyword.value))
}

/// Whether `word`, a slice of `text`, is called there; a column may be called `open`, but not be called.
fn is_called(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| text[at + word.len()..].trim_start().starts_with('('))
}
