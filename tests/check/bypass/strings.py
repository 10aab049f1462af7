# expect: NSB301
"{0.__init__.__globals__}".format(x)
# ---
# expect: NSB301
"{x.__class__}".format_map({"x": 1})
# ---
# expect: NSB301
"{0._private}".format(x)
# ---
# expect: NSB301
"{0[__class__]}".format(x)
# ---
# expect: NSB301
"{:{0.__class__}}".format(x)
# ---
# expect: NSB301
t = "{0.gi_frame}"
t.format(x)
# ---
# expect: NSB301
t = "{0.__cl" + "ass__}"
t.format(x)
# ---
# expect: NSB301
"".join(["{0.__cl", "ass__}"]).format(x)
# ---
# expect: NSB301
str.format("{0.__class__}", x)
# ---
# expect: NSB301
def f(t, x):
    return t.format(x)
# ---
# expect: NSB301
f = "{0.__class__}".format
f(x)
# ---
# expect: NSB301
list(map(str.format, ["{0.__class__}"], [x]))
# ---
# expect: NSB301
("{0.__class" "__}").format(x)
# ---
# expect: NSB301
f"{'{0.__class__}'.format(x)}"
# ---
# expect: NSB302
x = "__subclasses__"
# ---
# expect: NSB302
x = ["to_csv"]
# ---
# expect: NSB302
x = "a.__globals__"
# ---
# expect: NSB302
x = "__sub" + "classes__"
# ---
# expect: NSB302
x = f"__sub{'classes__'}"
# ---
# expect: NSB303
df.query(expr)
# ---
# expect: NSB303
df.query("@pd.io.common.os.system('id')")
# ---
# expect: NSB303
df.eval("@x.y")
# ---
# expect: NSB303
df.query("@f(1)")
# ---
# expect: NSB303
df.query("@ f (1)")
# ---
# expect: NSB303
df.query("a.__class__")
# ---
# expect: NSB303
df.query(f"a > {x}")
# ---
# expect: NSB303
import pandas as pd
pd.eval(x)
# ---
# expect: NSB303
import pandas as pd
df.query("@pd")
# ---
# expect: NSB303
df.eval(expr=x)
# ---
# expect: NSB303
df.eval(**kw)
# ---
# expect: NSB303
from pandas import eval as e
e(x)
# ---
# expect: NSB303
f = df.eval
f(x)
# ---
# expect: NSB303
df.query("a.to_csv('/etc/x')")
# ---
# expect: NSB304
df.agg("to_csv", path_or_buf="/etc/x")
# ---
# expect: NSB304
df.agg(["sum", "to_csv"])
# ---
# expect: NSB304
df.agg({"a": "to_pickle"})
# ---
# expect: NSB304
df.agg("to_" + "csv", path_or_buf="/etc/x")
# ---
# expect: NSB304
df.apply(func="to_csv")
# ---
# expect: NSB304
df.agg("".join(["to_", "csv"]), 0, "/etc/x")
# ---
# expect: NSB304
df.transform(name, path_or_buf="/etc/x")
# ---
# expect: NSB304
df.groupby("a").agg("to_json", path_or_buf="/etc/x")
# ---
# expect: NSB304
df.agg("eval", 0, "1")
# ---
# expect: NSB303
import numexpr as ne
ne.evaluate(x)
# ---
# expect: NSB303
import statsmodels.formula.api as smf
smf.ols("y ~ I(open('/etc/x'))", data=df)
# ---
# expect: NSB303
import statsmodels.formula.api as smf
smf.ols(formula=text, data=df)
# ---
# expect: NSB303
from statsmodels.formula.api import ols
ols(text, df)
# ---
# expect: NSB302
from functools import singledispatch
@singledispatch
def f(x): pass
@f.register
def g(x: "open('/etc/x')"): pass
# ---
# expect: NSB303
f = df.query
f(text)
# ---
# expect: NSB304
df.agg("xto_csv"[1:], 0, "/etc/x")
# ---
# expect: NSB304
df.agg(str(name), 0, "/etc/x")
