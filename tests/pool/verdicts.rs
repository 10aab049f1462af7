//! How a warm run ends, and by what that is known.

use nsbox::outcome::{Ended, Value, Verdict};
use nsbox::sandbox::Watch;

use crate::harness::alone;
use crate::pool;

#[test]
fn good_run_is_answered() {
    if !alone("verdicts::good_run_is_answered") {
        return;
    }
    let pool = pool(&[]);
    for i in 0..5 {
        let outcome = pool.run(format!("print('hello')\nresult = {i} + 1"), Watch::default());
        assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
        assert_eq!(outcome.ended, Ended::Answered, "{outcome:#?}");
        assert_eq!(outcome.result, Some(Value::Int(i + 1)));
        assert_eq!(outcome.stdout, b"hello\n");
        assert!(!outcome.degraded, "{:#?}", outcome.enforced);
    }
}
