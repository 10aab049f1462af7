//! That a program does what its file says: every number of every table, with arguments at the edges of each condition.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::compile::return_value;
use super::super::profile::{Action, Condition, Entry, Op, Profile};
use super::super::{Arch, Error, NOTICE, Options, Program, builtin_program};
use super::{ARCHES, NUMBERS, PROFILES, builtin};

/// A built-in profile, compiled for one architecture.
struct Compiled {
    name: &'static str,
    arch: Arch,
    profile: Profile,
    notifying: Program,
    silent: Program,
}

fn compiled() -> &'static [Compiled] {
    static CASES: LazyLock<Vec<Compiled>> = LazyLock::new(|| {
        let cases = PROFILES.into_iter().flat_map(|name| ARCHES.map(|arch| (name, arch)));
        let compile = |(name, arch)| {
            let profile = builtin(name);
            let program = |notify| profile.compile(Options { arch, notify, ..Options::default() }).unwrap();
            let (notifying, silent) = (program(true), program(false));
            Compiled { name, arch, profile, notifying, silent }
        };
        cases.map(compile).collect()
    });
    &CASES
}

fn holds(condition: &Condition, args: [u64; 6]) -> bool {
    let arg = args[usize::from(condition.index)];
    match condition.op {
        Op::Ne => arg != condition.value,
        Op::Lt => arg < condition.value,
        Op::Le => arg <= condition.value,
        Op::Eq => arg == condition.value,
        Op::Ge => arg >= condition.value,
        Op::Gt => arg > condition.value,
        Op::MaskedEq(mask) => arg & mask == condition.value,
    }
}

/// The entries of a profile that name each system call, by its number.
fn entries_by_number(profile: &Profile, arch: Arch) -> Vec<Vec<&Entry>> {
    let mut entries = vec![Vec::new(); usize::try_from(NUMBERS).unwrap()];
    for (entry, name) in profile.entries.iter().flat_map(|entry| entry.names.iter().map(move |name| (entry, name))) {
        if let Some(number) = arch.number(name) {
            entries[usize::try_from(number).unwrap()].push(entry);
        }
    }
    entries
}

/// Every action that the file, read entry by entry, gives to a call; the default where there is none.
fn actions(entries: &[&Entry], default: Action, args: [u64; 6]) -> BTreeSet<Action> {
    let applies = |entry: &&&Entry| entry.conditions.iter().all(|condition| holds(condition, args));
    let listed: BTreeSet<Action> = entries.iter().filter(applies).map(|entry| entry.action).collect();
    if listed.is_empty() { [default].into() } else { listed }
}

/// Values that sit on, beside and above the ones that the profiles compare with.
fn argument(profile: &Profile) -> impl Strategy<Value = u64> + use<> {
    let mut values: BTreeSet<u64> = [0, 1, 0xffff_ffff, u64::MAX].into();
    for condition in profile.entries.iter().flat_map(|entry| &entry.conditions) {
        values.extend([
            condition.value,
            condition.value.wrapping_sub(1),
            condition.value + 1,
            condition.value | 1 << 32,
        ]);
        if let Op::MaskedEq(mask) = condition.op {
            values.extend([mask, !mask, condition.value | !mask, condition.value ^ (mask & mask.wrapping_neg())]);
        }
    }
    let values: Vec<u64> = values.into_iter().collect();
    prop_oneof![prop::sample::select(values), any::<u64>(), 0_u64..64]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The file, the chains and the compiled search are three readings of one thing.
    #[test]
    fn program_agrees_with_the_file_on_every_number(
        args in prop::array::uniform6(argument(&builtin("default"))),
        notify in any::<bool>(),
    ) {
        for case in compiled() {
            let (name, arch) = (case.name, case.arch);
            let program = if notify { &case.notifying } else { &case.silent };
            for (number, entries) in (0_u32..).zip(entries_by_number(&case.profile, arch)) {
                let wanted = actions(&entries, case.profile.default, args);
                // No call with two actions: container runtimes would not agree on which one wins.
                prop_assert_eq!(wanted.len(), 1, "{} {:?} {:x?}: {:?}", name, arch.name(number), args, wanted);
                let wanted = return_value(*wanted.first().unwrap(), notify);
                let got = program.run(arch.audit(), number.cast_signed(), &args);
                prop_assert_eq!(got, wanted, "{} {:?} {:x?}", name, arch.name(number), args);
            }
        }
    }

    /// Any chain, not only the built-in ones: many rules, many conditions, far jumps.
    #[test]
    fn program_agrees_with_any_profile(
        rules in prop::collection::vec((0_usize..380, conditions(), action()), 1..200),
        args in prop::array::uniform6(0_u64..8),
    ) {
        let names: Vec<&str> = (0..NUMBERS).filter_map(|number| Arch::HOST.name(number)).collect();
        let mut profile = builtin("default");
        let entry = profile.entries[0].clone();
        profile.entries.clear();
        for (call, conditions, action) in rules {
            let mut entry = entry.clone();
            entry.names = vec![names[call % names.len()].to_owned()];
            (entry.conditions, entry.action) = (conditions, action);
            profile.entries.push(entry);
        }
        match profile.compile(Options::default()) {
            Err(Error::Contradiction { .. }) => {}
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
            Ok(program) => for (number, entries) in (0..).zip(entries_by_number(&profile, Arch::HOST)) {
                // The strictest wins.
                let wanted = *actions(&entries, profile.default, args).last().unwrap();
                let got = program.run(Arch::HOST.audit(), number, &args);
                prop_assert_eq!(got, return_value(wanted, true));
            },
        }
    }

    /// What default refuses, strict refuses.
    #[test]
    fn strict_is_never_looser_than_default(args in prop::array::uniform6(argument(&builtin("strict")))) {
        for arch in ARCHES {
            let options = Options { arch, ..Options::default() };
            let (default, strict) = (builtin_program("default", options).unwrap(), builtin_program("strict", options).unwrap());
            for number in 0..NUMBERS.cast_signed() {
                if strict.run(arch.audit(), number, &args) == libc::SECCOMP_RET_ALLOW {
                    prop_assert_eq!(default.run(arch.audit(), number, &args), libc::SECCOMP_RET_ALLOW);
                }
            }
        }
    }

    /// Options tighten a profile, and change nothing else.
    #[test]
    fn options_only_tighten(
        args in prop::array::uniform6(argument(&builtin("default"))),
        require_memfd_noexec in any::<bool>(),
        shares_host in any::<bool>(),
        holds_signals in any::<bool>(),
    ) {
        let plain = builtin_program("default", Options::default()).unwrap();
        let options = Options { require_memfd_noexec, shares_host, holds_signals, ..Options::default() };
        let tight = builtin_program("default", options).unwrap();
        for number in 0..NUMBERS.cast_signed() {
            let (loose, tight) = (plain.run(Arch::HOST.audit(), number, &args), tight.run(Arch::HOST.audit(), number, &args));
            prop_assert!(tight == loose || tight == libc::SECCOMP_RET_USER_NOTIF | 13);
        }
    }

    /// What is told runs all the same, and what is refused is refused.
    #[test]
    fn notices_change_no_fate(args in prop::array::uniform6(argument(&builtin("default")))) {
        let plain = builtin_program("default", Options::default()).unwrap();
        let told = builtin_program("default", Options { notices: true, ..Options::default() }).unwrap();
        for number in 0..NUMBERS.cast_signed() {
            let (plain, told) = (plain.run(Arch::HOST.audit(), number, &args), told.run(Arch::HOST.audit(), number, &args));
            let is_told = plain == libc::SECCOMP_RET_ALLOW && told == libc::SECCOMP_RET_USER_NOTIF | NOTICE;
            prop_assert!(told == plain || is_told);
        }
    }

    /// A profile is a user's file: whatever is in it, reading it ends in a profile or an error.
    #[test]
    fn parse_survives_damage(at in any::<prop::sample::Index>(), byte in 0x20_u8..0x7f) {
        let mut text = Profile::builtin_text("strict").unwrap().as_bytes().to_vec();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(profile) = Profile::parse(Path::new("damaged"), std::str::from_utf8(&text).unwrap()) {
            let ended = matches!(profile.compile(Options::default()), Ok(_) | Err(Error::Contradiction { .. }));
            prop_assert!(ended);
        }
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        (1_u16..4096).prop_map(Action::Probe),
        (1_u16..4096).prop_map(Action::Refuse),
        Just(Action::Kill)
    ]
}

fn conditions() -> impl Strategy<Value = Vec<Condition>> {
    let op = prop_oneof![
        Just(Op::Ne),
        Just(Op::Lt),
        Just(Op::Le),
        Just(Op::Eq),
        Just(Op::Ge),
        Just(Op::Gt),
        any::<u64>().prop_map(Op::MaskedEq),
        (0_u64..8).prop_map(Op::MaskedEq),
    ];
    prop::collection::btree_map(0_u8..6, (op, 0_u64..8), 0..6).prop_map(|conditions| {
        conditions
            .into_iter()
            .map(|(index, (op, value))| {
                let value = if let Op::MaskedEq(mask) = op { value & mask } else { value };
                Condition { index, op, value }
            })
            .collect()
    })
}
