//! Inside Docker.
use crate::engine::Engine;

#[test]
fn engine_leaves_nothing() {
    let Some(engine) = Engine::shared() else { return };
    if !engine.has_base() {
        return;
    }
    let output = engine.run(&[], &["python3", "-c", "print('in')"]);
    assert_eq!(output.stdout, b"in\n", "{output:?}");
}
