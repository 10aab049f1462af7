# expect: NSB201
eval("1")
# ---
# expect: NSB201
exec("x = 1")
# ---
# expect: NSB201
open("/etc/passwd")
# ---
# expect: NSB201
e = eval
# ---
# expect: NSB201
list(map(eval, ["1"]))
# ---
# expect: NSB201
__import__("os")
# ---
# expect: NSB201
@eval
class X:
    pass
# ---
# expect: NSB201
@exec
@str
def f():
    pass
# ---
# expect: NSB201
def f(x=eval):
    return x("1")
# ---
# expect: NSB201
def f(x: eval("1")):
    pass
# ---
# expect: NSB201
def f() -> open("/etc/passwd"):
    pass
# ---
# expect: NSB201
x: exec("1") = 2
# ---
# expect: NSB201
f"{eval('1')}"
# ---
# expect: NSB201
f"{1:{eval('1')}}"
# ---
# expect: NSB201
f"{1!r:{open('x')}}"
# ---
# expect: NSB201
(e := eval)("1")
# ---
# expect: NSB201
class A:
    __getitem__ = eval
# ---
# expect: NSB201
class A(metaclass=eval):
    pass
# ---
# expect: NSB201
def g():
    yield eval
# ---
# expect: NSB201
lambda x=eval: x
# ---
# expect: NSB201
[eval for x in y]
# ---
# expect: NSB201
[x for x in [eval]]
# ---
# expect: NSB201
match 1:
    case 1 if eval("1"):
        pass
# ---
# expect: NSB201
match 1:
    case eval(x):
        pass
# ---
# expect: NSB201
globals()["x"]
# ---
# expect: NSB201
vars(print)
# ---
# expect: NSB201
import functools
functools.reduce(getattr, ["a"], 1)
# ---
# expect: NSB201
import functools
functools.partial(getattr, 1)
# ---
# expect: NSB201
breakpoint()
# ---
# expect: NSB201
input()
# ---
# expect: NSB201
if False:
    eval = None
eval("1")
# ---
# expect: NSB201
def f():
    return eval("1")
f()
eval = 1
# ---
# expect: NSB201
eval("1"); eval = 1
# ---
# expect: NSB201
for eval in []:
    pass
eval("1")
# ---
# expect: NSB201
eval = 1
del eval
eval("1")
# ---
# expect: NSB201
open = 1
try:
    1 / 0
except Exception as open:
    pass
open("/etc/passwd")
# ---
# expect: NSB201
def f(eval):
    class C:
        x = eval("1")
        eval = 2
    return C
# ---
# expect: NSB201
def f():
    global eval
    eval("1")
    eval = 1
# ---
# expect: NSB201
class eval_:
    eval = 1
    def f(self):
        return eval("1")
# ---
# expect: NSB201
[eval for eval in ()] or eval("1")
# ---
# expect: NSB201
try:
    x = open
except Exception:
    pass
finally:
    exec("1")
# ---
# expect: NSB201
with open("x") as f:
    pass
# ---
# expect: NSB201
del globals()["x"]
# ---
# expect: NSB201
type X = eval("1")
# ---
# expect: NSB201
def f[T: eval("1")](x: T): ...
# ---
# expect: NSB204
getattr(x, y)
# ---
# expect: NSB204
getattr(x, "a" + y)
# ---
# expect: NSB204
getattr(print, "__self" + str("__"))
# ---
# expect: NSB204
getattr(*args, "a")
# ---
# expect: NSB204
setattr(x, y, 1)
# ---
# expect: NSB206
type("X", (), {})
# ---
# expect: NSB206
t = type
t("X", (), {})
# ---
# expect: NSB206
type(*args)
# ---
# expect: NSB206
class M(type):
    pass
# ---
# expect: NSB206
class A(metaclass=M):
    pass
# ---
# expect: NSB206
class A(**kw):
    pass
# ---
# expect: NSB206
from abc import ABCMeta
class M(ABCMeta):
    def __call__(cls):
        pass
