# expect: NSB102
import random
random._os.system("id")
# ---
# expect: NSB102
import typing
typing.sys.modules
# ---
# expect: NSB102
import pandas as pd
pd.io.common.os
# ---
# expect: NSB102
import pandas as pd
import numpy as np
np.lib.npyio.os
# ---
# expect: NSB102
import numpy as np
np.f2py.compile("x")
# ---
# expect: NSB102
import numpy as np
np.ctypeslib.load_library("libc", "/lib")
# ---
# expect: NSB102
import numpy as np
np.lib.stride_tricks.as_strided(np.zeros(1), shape=(1 << 40,))
# ---
# expect: NSB102
import pandas as pd
x = pd
y = x
y.io.common
# ---
# expect: NSB102
import pandas as pd
a, b = pd, 1
a.io
# ---
# expect: NSB102
import pandas as pd
(x := pd).io.common
# ---
# expect: NSB102
import pandas as pd
def f():
    return (lambda: pd.io)()
# ---
# expect: NSB102
import pandas as pd
def f():
    global q
    q = pd.core
    return q.common
# ---
# expect: NSB102
import json
json.codecs.open("/etc/passwd")
# ---
# expect: NSB102
import enum
enum.bltns.eval("1")
# ---
# expect: NSB102
import warnings
warnings.sys
# ---
# expect: NSB102
import io
io.open("/etc/passwd")
# ---
# expect: NSB102
import operator, functools
functools.reduce(operator.attrgetter("a"), [1])
# ---
# expect: NSB102
import operator
operator.methodcaller("to_csv", "/etc/x")
# ---
# expect: NSB102
import string
string.Formatter().format("{0.__class__}", 1)
# ---
# expect: NSB102
import dataclasses
dataclasses.make_dataclass("A", ["x"])
# ---
# expect: NSB102
import timeit
timeit.timeit("1")
# ---
# expect: NSB102
import types
types.CodeType
# ---
# expect: NSB102
import typing
typing.ForwardRef("1")
# ---
# expect: NSB102
import traceback
traceback.walk_stack(None)
# ---
# expect: NSB102
import pandas as pd
pd.options.plotting.backend = "x"
# ---
# expect: NSB102
import networkx as nx
nx.read_gpickle("/input/x")
# ---
# expect: NSB102
import random
getattr(random, "_os")
# ---
# expect: NSB102
import random
x = getattr(random, "_" + "os")
# ---
# expect: NSB102
import pandas as pd
N = "io"
getattr(pd, N)
# ---
# expect: NSB102
import pandas as pd
if 1:
    m = pd
else:
    m = None
m.io
# ---
# expect: NSB102
import pandas as pd
(pd if 1 else None).io
# ---
# expect: NSB105
import pandas as pd
def f(m):
    return m.io
f(pd)
# ---
# expect: NSB105
import random
[random][0]._os
# ---
# expect: NSB105
import random
d = {"r": random}
# ---
# expect: NSB105
import random
for m in (random,):
    m._os
# ---
# expect: NSB105
import random
def f(m=random):
    return m
# ---
# expect: NSB105
import random
class A:
    pass
A.m = random
# ---
# expect: NSB105
import random
def f():
    return random
# ---
# expect: NSB105
import random
f"{random}"
# ---
# expect: NSB105
import random
match random:
    case object(_os=o):
        o.system("id")
# ---
# expect: NSB105
import random
x = 1
def g():
    nonlocal_ = [x for x in [random]]
# ---
# expect: NSB203
def f(m):
    return m.subprocess
# ---
# expect: NSB203
def f(m):
    return m.os.system("id")
# ---
# expect: NSB203
x = [1][0].importlib
# ---
# expect: NSB105
import pandas as pd
class A:
    m = pd
A.m.io
# ---
# expect: NSB105
class A:
    import pandas as m
A.m.io
# ---
# expect: NSB105
import pandas as pd
def f():
    m = None
    def g():
        nonlocal m
        m = pd
    g()
    return m.io
# ---
# expect: NSB105
def f():
    m = None
    def g():
        nonlocal m
        import pandas as m
    g()
    return m.io
# ---
# expect: NSB102
from json.tool import Path
# ---
# expect: NSB102
import json.tool
json.tool.argparse
# ---
# expect: NSB404
from pandas import read_csv
class A:
    r = read_csv
A.r("/etc/passwd")
# ---
# expect: NSB105
import pandas as pd
class A:
    def __lt__(self, other):
        return other
(A() < pd).io
# ---
# expect: NSB105
import pandas as pd
def f() -> (y := pd):
    pass
y.io
# ---
# expect: NSB102
import io
import pandas as pd
io.StringIO = lambda text: "/etc/passwd"
pd.read_csv(io.StringIO("x"))
# ---
# expect: NSB102
import io
setattr(io, "StringIO", print)
