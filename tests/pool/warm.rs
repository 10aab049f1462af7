//! The warm-up of slots that serve once.

use nsbox::outcome::Value;

use crate::harness::{alone, until};
use crate::{builder, run};

const TOUCH: &str = "
import resource, sys
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
kept = [value for module in list(sys.modules.values()) for value in vars(module).values()]
result = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
";

#[test]
fn warmed_slot_has_copied_what_the_warm_up_touched() {
    if !alone("warm::warmed_slot_has_copied_what_the_warm_up_touched") {
        return;
    }
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&script, TOUCH).unwrap();
    let copied = [script.path().to_str().unwrap(), "none"].map(|warm_up| {
        let keys = [("warm_up", warm_up), ("preload", "decimal,json,logging,random,resource,threading")];
        let pool = builder(&keys).slots(2).build().unwrap();
        until("the slots are warm", || pool.warmed() == 2);
        let outcome = run(&pool, TOUCH);
        let Some(Value::Int(pages)) = outcome.result else { panic!("{outcome:#?}") };
        pages
    });
    let [warm, plain] = copied;
    assert!(plain > 60 && warm * 3 < plain, "{warm} pages in a warm slot, {plain} in one that is not");
}
