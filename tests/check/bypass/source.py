# expect: NSB002
# -*- coding: utf-7 -*-
x = 1
# ---
# expect: NSB006
ｉｍｐｏｒｔ = 1
# ---
# expect: NSB006
ｅｖａｌ("1")
# ---
# expect: NSB006
x.__ｇｌｏｂａｌｓ__
# ---
# expect: NSB006
import ｏｓ
# ---
# expect: NSB006
f(𝒙=1)
# ---
# expect: NSB004
return 1
# ---
# expect: NSB004
nonlocal x
# ---
# expect: NSB004
break
# ---
# expect: NSB004
continue
# ---
# expect: NSB004
x = = 1
# ---
# expect: NSB004
def f(a, a): pass
# ---
# expect: NSB004
yield 1
# ---
# expect: NSB004
await x
# ---
# expect: NSB004
def f():
    await x
# ---
# expect: NSB004
class A:
    return 1
# ---
# expect: NSB004
while 1:
    def f():
        break
# ---
# expect: NSB004
def f():
    nonlocal x
# ---
# expect: NSB004
def f():
    x = 1
    global x
# ---
# expect: NSB004
[(yield 1) for x in y]
# ---
# expect: NSB004
print "x"
