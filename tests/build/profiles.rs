//! What the profiles hold: every package that a strategy may import, compiled, and nothing that a guest has no use for.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::harness::outcome_of;
use crate::store::{inspect, nsbox_in, printed, slim, store};

/// Distribution, least version, module.
const PACKAGES: [(&str, &str, &str); 13] = [
    ("pandas", "2.3.2", "pandas"),
    ("numpy", "2.2.0", "numpy.testing"),
    ("scipy", "1.15.0", "scipy.stats"),
    ("scikit-learn", "1.7.0", "sklearn.ensemble"),
    ("finlab", "1.5.3", "finlab.data"),
    ("yfinance", "0.2.60", "yfinance"),
    ("TA-Lib", "0.6.7", "talib"),
    ("networkx", "3.4.0", "networkx"),
    ("SQLAlchemy", "2.0.43", "sqlalchemy.orm"),
    ("duckdb", "1.4.0", "duckdb"),
    ("pyarrow", "21.0.0", "pyarrow.dataset"),
    ("backtesting", "0.6.0", "backtesting.test"),
    ("bokeh", "3.0.0", "bokeh.plotting"),
];
const CLIENTS: [(&str, &str, &str); 3] = [
    ("anthropic", "0.69.0", "anthropic"),
    ("openai", "2.2.0", "openai"),
    ("google-generativeai", "0.8.5", "google.generativeai"),
];

/// Reads PACKAGES; prints what is wrong. Small computations, for a library that loads may still lack one that it calls.
const IMPORTS: &str = r#"
import importlib, importlib.metadata
from packaging.version import Version
for name, least, module in PACKAGES:
    found = importlib.metadata.version(name)
    if Version(found) < Version(least):
        print(name, found, "is older than", least)
    try:
        importlib.import_module(module)
    except Exception as error:
        print(module, repr(error))
import datetime, zoneinfo
import duckdb, numpy, pandas, pyarrow, pyarrow.parquet, scipy.linalg, sqlalchemy
frame = pandas.DataFrame({"a": numpy.arange(4.0)}, index=pandas.date_range("2024-01-01", periods=4, tz="Asia/Taipei"))
frame.reset_index().to_parquet("/tmp/f.parquet")
assert pandas.read_parquet("/tmp/f.parquet")["a"].sum() == 6
assert duckdb.sql("select sum(a) from frame").fetchall() == [(6.0,)]
engine = sqlalchemy.create_engine("sqlite://")
frame.to_sql("t", engine)
assert pandas.read_sql("select count(*) as n from t", engine)["n"][0] == 4
assert abs(scipy.linalg.det(numpy.eye(3)) - 1) < 1e-12
assert datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("America/New_York")).utcoffset().total_seconds() == -14400
print("done")
"#;

/// Every path of a tree, with the bytes of each file once, however many names it has.
fn files(root: &Path) -> (Vec<PathBuf>, u64) {
    let (mut found, mut seen, mut bytes) = (Vec::new(), HashSet::new(), 0);
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o6000, 0, "{path:?} gives its owner's rights to others");
            if metadata.is_dir() {
                pending.push(path.clone());
            } else if seen.insert(metadata.ino()) {
                bytes += metadata.len();
            }
            found.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
    (found, bytes)
}

/// Imports and computes in the guest, with the check's approval where it allows the package.
#[track_caller]
fn packages_work(image: &str, packages: &[(&str, &str, &str)]) {
    let list: Vec<String> = packages.iter().map(|(a, b, c)| format!("({a:?}, {b:?}, {c:?})")).collect();
    let source = format!("PACKAGES = [{}]\n{IMPORTS}", list.join(", "));
    let command = nsbox_in(store(), &["run", "--json", "--no-check", "--cpus", "2", "--image", image, "-"]);
    assert_eq!(outcome_of(command, source.as_bytes()).expect("ok").stdout(), "done\n");
}

#[track_caller]
fn nothing_useless_is_left(paths: &[PathBuf]) {
    const PROGRAMS: [&str; 14] =
        ["gcc", "cc", "g++", "ld", "as", "make", "pip", "pip3", "apt", "dpkg", "pytest", "flake8", "mypy", "ipython"];
    const PACKAGES: [&str; 9] =
        ["pip", "setuptools", "wheel", "pytest", "_pytest", "flake8", "mypy", "ipykernel", "ensurepip"];
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        let parent = path.parent().unwrap();
        assert!(!(parent.ends_with("bin") && PROGRAMS.contains(&name)), "{path:?}");
        let is_module = parent.ends_with("dist-packages") || parent.ends_with("python3.11");
        assert!(!(is_module && PACKAGES.contains(&name)), "{path:?}");
        let suffix = path.extension().and_then(|suffix| suffix.to_str());
        let of_a_compiler = matches!(suffix, Some("a" | "h" | "hpp" | "pyx" | "whl" | "deb"));
        assert!(!of_a_compiler, "{path:?}");
    }
    assert!(!paths.iter().any(|path| path.starts_with("build")), "the installer is gone");
}

/// Every module has its bytecode, as the interpreter looks for it.
#[track_caller]
fn modules_are_compiled(paths: &[PathBuf]) {
    let all: HashSet<&PathBuf> = paths.iter().collect();
    let modules: Vec<&PathBuf> =
        paths.iter().filter(|path| path.extension().is_some_and(|suffix| suffix == "py")).collect();
    let bare: Vec<&&PathBuf> = modules
        .iter()
        .filter(|path| {
            let name = format!("{}.cpython-311.pyc", path.file_stem().unwrap().to_str().unwrap());
            !all.contains(&path.parent().unwrap().join("__pycache__").join(name))
        })
        .collect();
    // Templates and files for other versions, which no interpreter of this one can compile.
    assert!(modules.len() > 2000 && bare.len() < 20, "{} of {}: {bare:?}", bare.len(), modules.len());
}

#[test]
fn slim_is_built_at_its_first_use_and_says_so() {
    let said = &slim().said;
    assert!(said.contains("has no image \"sandbox-slim\" yet: building it, once"), "{said}");
    assert_eq!(inspect(store(), "sandbox-slim")["source"], "build slim");
    let output = nsbox_in(store(), &["run", "--image", "sandbox-slim", "-"]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn slim_holds_what_strategies_import_in_600_mb() {
    let (paths, bytes) = files(&slim().rootfs);
    assert!(bytes < 600_000_000, "{bytes} bytes");
    nothing_useless_is_left(&paths);
    modules_are_compiled(&paths);
    packages_work("sandbox-slim", &PACKAGES);
}

#[test]
fn full_holds_the_clients_too_in_1230_mb() {
    printed(nsbox_in(store(), &["image", "build", "--name", "full"]));
    let (paths, bytes) = files(Path::new(inspect(store(), "full")["rootfs"].as_str().unwrap()));
    assert!(bytes <= 1_230_000_000, "{bytes} bytes");
    nothing_useless_is_left(&paths);
    modules_are_compiled(&paths);
    packages_work("full", &[PACKAGES.as_slice(), &CLIENTS].concat());
    printed(nsbox_in(store(), &["image", "rm", "full"]));
}
