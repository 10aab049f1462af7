//! The warm-up of slots that serve once.

use nsbox::outcome::Value;

use crate::harness::{alone, until};
use crate::{builder, run};

/// 200 pages of the zygote's.
const MAKE: &str = "
import json
if not hasattr(json, 'pages'):
    json.pages = [bytearray(5000) for _ in range(200)]
";
const TOUCH: &str = "
import json, resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for page in json.pages:
    page[2500] ^= 1
result = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
";

#[test]
fn warmed_slot_has_copied_what_the_warm_up_touched() {
    if !alone("warm::warmed_slot_has_copied_what_the_warm_up_touched") {
        return;
    }
    let copied = [format!("{MAKE}{TOUCH}"), MAKE.to_owned()].map(|warm_up| {
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&script, warm_up).unwrap();
        let keys = [("warm_up", script.path().to_str().unwrap()), ("preload", "json,resource")];
        let pool = builder(&keys).slots(2).build().unwrap();
        until("the slots are warm", || pool.warmed() == 2);
        let outcome = run(&pool, TOUCH);
        let Some(Value::Int(pages)) = outcome.result else { panic!("{outcome:#?}") };
        pages
    });
    let [warm, plain] = copied;
    assert!(plain >= 200 && warm * 4 < plain, "{warm} pages in a warm slot, {plain} in one that is not");
}

#[test]
fn warmed_slot_has_the_script_s_file_and_no_other() {
    if !alone("warm::warmed_slot_has_the_script_s_file_and_no_other") {
        return;
    }
    let pool = builder(&[("preload", "json")]).slots(2).build().unwrap();
    for _ in 0..3 {
        until("the slots are warm", || pool.warmed() == 2);
        let source = "import os, sys\nresult = [os.listdir('/work'), sys.argv, open(__file__).read()[:9], dir()]";
        let outcome = run(&pool, source);
        let Some(Value::List(seen)) = &outcome.result else { panic!("{outcome:#?}") };
        let name = |text: &str| Value::List(vec![Value::Str(text.to_owned())]);
        assert_eq!(seen[..2], [name("script.py"), name("/work/script.py")], "{outcome:#?}");
        assert_eq!(seen[2], Value::Str("import os".to_owned()), "{outcome:#?}");
        let Value::List(names) = &seen[3] else { panic!("{outcome:#?}") };
        let own = ["os", "sys"].map(|name| Value::Str(name.to_owned()));
        let is_known = |name: &Value| matches!(name, Value::Str(name) if name.starts_with("__")) || own.contains(name);
        assert!(names.iter().all(is_known), "{outcome:#?}");
    }
}
