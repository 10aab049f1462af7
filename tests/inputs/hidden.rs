//! A script that tries to reach the caller's memory: what it maps is its own, and of the memfd it has nothing else.

use nsbox::outcome::{Array, Value};
use nsbox::sandbox::{Input, Script};

use crate::harness::alone;
use crate::python::libraries;
use crate::{Way, list, text};

/// Looks for every way to the memfd that a mapping leaves, and tries to change what is there.
const ATTACK: &str = r"
import ctypes, fcntl, os, re

links = []
for fd in os.listdir('/proc/self/fd'):
    try: links.append(os.readlink('/proc/self/fd/' + fd))
    except OSError: pass
result = ['no descriptor' if not any('nsbox-input' in link for link in links) else links]

libc = ctypes.CDLL(None, use_errno=True)
with open('/proc/self/maps') as file:
    maps = [line for line in file if 'nsbox-input' in line]
result.append([re.sub(r'.* ([r-][w-][x-][sp]) .*', r'\1', line.strip()) for line in maps])
begin, end = (int(address, 16) for address in maps[0].split()[0].split('-'))

# The file behind the mapping.
try:
    fd = os.open(f'/proc/self/map_files/{begin:x}-{end:x}', os.O_RDWR)
    os.pwrite(fd, b'x' * 4096, 64)
    result.append('opened')
except OSError as error:
    result.append('not opened')
# Shared where it is private: mremap(2) cannot, and what mprotect(2) allows is a copy still.
libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 3)
# The next write back, by way of the page cache: msync(2), MADV_PAGEOUT, MADV_REMOVE (a hole in the file).
ctypes.memset(begin, 0x5a, end - begin)
libc.msync(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 4)
libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 21)
result.append('no hole' if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 9) != 0 else 'a hole')
try:
    with open('/proc/self/mem', 'r+b', buffering=0) as memory:
        memory.seek(begin)
        memory.write(b'y' * 4096)
except OSError:
    pass
result.append('written' if data[100] != 1.0 else 'not written')
";

#[test]
fn script_has_no_way_to_the_memory_of_its_caller() {
    if !alone("hidden::script_has_no_way_to_the_memory_of_its_caller") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let input = Input::new(Array::from(&[1.0; 4096][..])).unwrap();
    let keys = [("check", "false")];
    let (cold, warm) = (Way::cold(&python, &keys), Way::warm(&python, "pandas,numpy", &keys));
    let expected = Value::from(vec![
        text("no descriptor"),
        Value::from(vec![text("rw-p")]),
        text("not opened"),
        text("no hole"),
        text("written"),
    ]);
    for way in [&cold, &warm] {
        assert_eq!(way.result(Script::from(ATTACK).give("data", &input)), expected);
        for reader in [&cold, &warm] {
            let read = Script::from("result = [len(data), float(data.sum())]").give("data", &input);
            assert_eq!(reader.result(read), list([4096.into(), 4096.0.into()]), "a neighbour sees a change");
        }
    }
}

#[test]
fn running_neighbours_do_not_see_each_others_writes() {
    if !alone("hidden::running_neighbours_do_not_see_each_others_writes") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let input = Input::new(Array::from(&[0.0; 10_000][..])).unwrap();
    let pool = Way::warm(&python, "pandas,numpy", &[("check", "false")]);
    // Each writes its own number all over, while the other does.
    let source = "
import time
for _ in range(200):
    assert (data == data[0]).all() and data[0] in (0, number), data[:4]
    data[:] = number
    time.sleep(0.001)
result = float(data.sum())
";
    std::thread::scope(|scope| {
        let runs: Vec<_> = (1..=2)
            .map(|number| {
                let script = Script::from(source).give("data", &input).value("number", number).unwrap();
                scope.spawn(|| pool.result(script))
            })
            .collect();
        let sums: Vec<Value> = runs.into_iter().map(|run| run.join().unwrap()).collect();
        assert_eq!(sums, [10_000.0, 20_000.0].map(Value::from));
    });
}
