//! The rules of the check: one stable code for each kind of finding.

use serde::Serialize;

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $title:literal;)+) => {
        /// A rule of the check. Its code is stable: logs, suppressions and the loop's prompts may rely on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[doc = $doc])+ #[serde(rename = $code)] $name,)+
        }

        impl Rule {
            /// Every rule, in the order of the codes.
            pub const ALL: &'static [Rule] = &[$(Rule::$name,)+];

            /// The stable code, such as `NSB101`.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Rule::$name => $code,)+ }
            }

            /// What the rule refuses, in a few words.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Rule::$name => $title,)+ }
            }
        }
    };
}

rules! {
    /// The source is larger than the policy allows.
    SourceSize = "NSB001", "source too large";
    /// The source is not UTF-8, or declares another encoding.
    Encoding = "NSB002", "source encoding";
    /// The source holds a NUL.
    NulByte = "NSB003", "NUL in source";
    /// CPython would refuse to compile the source.
    Syntax = "NSB004", "syntax error";
    /// The source nests deeper than the policy allows.
    Nesting = "NSB005", "nesting too deep";
    /// An identifier that Python reads as another, ASCII one.
    Identifier = "NSB006", "disguised identifier";
    /// The source is too complex to be checked within bounds.
    Complexity = "NSB007", "source too complex";
    /// The parser failed on the source.
    Parser = "NSB008", "parser failure";
    /// Import of a module that the policy does not allow.
    Import = "NSB101", "import not allowed";
    /// A forbidden member of an allowed module.
    ModuleMember = "NSB102", "forbidden member of a module";
    /// `from module import *`.
    StarImport = "NSB103", "star import";
    /// A relative import.
    RelativeImport = "NSB104", "relative import";
    /// A module handed around as a value.
    ModuleValue = "NSB105", "module used as a value";
    /// A forbidden builtin.
    Builtin = "NSB201", "forbidden builtin";
    /// A forbidden dunder name.
    DunderName = "NSB202", "forbidden dunder name";
    /// A forbidden attribute.
    Attribute = "NSB203", "forbidden attribute";
    /// An attribute whose name is computed.
    DynamicAttribute = "NSB204", "computed attribute name";
    /// A definition of a dunder that runs behind the reader's back.
    DunderDefinition = "NSB205", "forbidden dunder definition";
    /// A metaclass, or a class made by `type`.
    Metaclass = "NSB206", "metaclass";
    /// A format string that reads attributes, or one that cannot be seen.
    FormatString = "NSB301", "format string";
    /// A string that spells a forbidden name.
    NameInString = "NSB302", "forbidden name in a string";
    /// `query` or `eval` of something other than a plain literal.
    Query = "NSB303", "query or eval";
    /// A method called by a computed name.
    StringDispatch = "NSB304", "string dispatch";
    /// A reader on something other than an input.
    Reader = "NSB401", "reader outside the inputs";
    /// A writer to something other than the output.
    Writer = "NSB402", "writer outside the output";
    /// Loading of pickled objects.
    Pickle = "NSB403", "unpickling";
    /// A reader or writer that is not called in place.
    IoValue = "NSB404", "reader or writer used as a value";
}
