# expect: NSB203
().__class__.__bases__[0].__subclasses__()
# ---
# expect: NSB203
print.__self__
# ---
# expect: NSB203
(lambda: 0).__globals__
# ---
# expect: NSB203
x.__class__
# ---
# expect: NSB203
x.__dict__
# ---
# expect: NSB203
def f():
    yield
f().gi_frame.f_back.f_globals
# ---
# expect: NSB203
async def f():
    pass
f().cr_frame
# ---
# expect: NSB203
try:
    1 / 0
except Exception as e:
    e.__traceback__.tb_frame
# ---
# expect: NSB203
def f(e):
    return e.tb_frame.f_back
# ---
# expect: NSB203
x.f_globals
# ---
# expect: NSB203
match 1:
    case object(__class__=c):
        pass
# ---
# expect: NSB203
match f():
    case object(gi_frame=object(f_back=b)):
        pass
# ---
# expect: NSB203
x.__class__ = y
# ---
# expect: NSB203
del x.__class__
# ---
# expect: NSB203
x.__class__ += 1
# ---
# expect: NSB203
for x.__class__ in y:
    pass
# ---
# expect: NSB203
with a as x.__dict__:
    pass
# ---
# expect: NSB203
f"{x.__globals__}"
# ---
# expect: NSB203
@x.__globals__
def f(): pass
# ---
# expect: NSB203
getattr(x, "__globals__")
# ---
# expect: NSB203
getattr(x, "__glo" "bals__")
# ---
# expect: NSB203
getattr(x, "__glo" + "bals__")
# ---
# expect: NSB203
A = "__glo"
B = "bals__"
getattr(x, A + B)
# ---
# expect: NSB203
getattr(x, f"__{'globals'}__")
# ---
# expect: NSB203
x.__getattribute__("a")
# ---
# expect: NSB203
object.__getattribute__(x, "__class__")
# ---
# expect: NSB203
type.mro(int)
# ---
# expect: NSB203
x.__reduce_ex__(2)
# ---
# expect: NSB203
df.to_pickle("/work/x")
# ---
# expect: NSB203
import warnings
warnings.catch_warnings()._module
# ---
# expect: NSB202
__builtins__
# ---
# expect: NSB202
__builtins__["eval"]
# ---
# expect: NSB202
__loader__.load_module("os")
# ---
# expect: NSB202
def f(__class__): pass
# ---
# expect: NSB202
class A:
    __match_args__ = ("gi_frame",)
# ---
# expect: NSB202
class A:
    def f(self):
        return __class__
# ---
# expect: NSB205
class A:
    def __init_subclass__(cls): pass
# ---
# expect: NSB205
class A:
    def __class_getitem__(cls, x): pass
# ---
# expect: NSB205
class A:
    def __getattribute__(self, x): pass
# ---
# expect: NSB205
class A:
    def __reduce__(self): return (print, ())
# ---
# expect: NSB205
class A:
    def __set_name__(self, o, n): pass
# ---
# expect: NSB205
class A:
    def __del__(self): pass
# ---
# expect: NSB205
def __import__(name): pass
