"""Starts a program as a careless host would: `hostile.py FOLDER tty|pipes PROGRAM ARG...`."""

import glob, os, pty, socket, sys

folder, kind, *program = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
os.chdir(folder)
for name in ("secret", "writable"):
    with open(name, "w") as file:
        file.write("hostile-secret")
with open("sitecustomize.py", "w") as file:
    file.write("import sys\nsys.hostile = True\n")
pair = socket.socketpair()
kept = [os.open(".", os.O_RDONLY | os.O_DIRECTORY), os.open("writable", os.O_RDWR), *(end.detach() for end in pair)]
for fd in kept:
    os.set_inheritable(fd, True)
environment = os.environ | {"HOSTILE": "hostile-secret", "PYTHONPATH": folder, "LD_LIBRARY_PATH": folder}
environment["LD_PRELOAD"] = next(iter(glob.glob("/lib/*/libthread_db.so.1") + glob.glob("/lib64/libthread_db.so.1")), "")
if kind == "pipes":
    os.dup2(os.open("secret", os.O_RDWR), 0)
    os.execve(program[0], program, environment)
pid, master = pty.fork()
if pid == 0:
    os.execve(program[0], program, environment)
said = b""
while True:
    try:
        piece = os.read(master, 65536)
    except OSError:
        break
    if not piece:
        break
    said += piece
sys.stdout.buffer.write(said)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
