"""Runs a program under a seccomp profile, as a container's runtime does: seccomp.py PROFILE PROGRAM…

The filter is made by libseccomp, which runtimes use as well. With SECCOMP_KILL=1 whatever is not allowed
kills the program, so that it shows. Exit code 77: there is no libseccomp here, or it is too old.
"""

import ctypes
import errno
import json
import os
import sys

ALLOW, KILL = 0x7FFF0000, 0x80000000
COMPARE = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
PR_SET_NO_NEW_PRIVS = 38


class Comparison(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def action(name, number):
    if name == "SCMP_ACT_ALLOW":
        return ALLOW
    assert name == "SCMP_ACT_ERRNO", name
    return 0x00050000 | number


def main():
    profile_path, program = sys.argv[1], sys.argv[2:]
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        sys.exit(77)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(Comparison),
    ]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    with open(profile_path, encoding="utf-8") as file:
        profile = json.load(file)
    default = action(profile["defaultAction"], profile["defaultErrnoRet"])
    context = library.seccomp_init(KILL if os.environ.get("SECCOMP_KILL") == "1" else default)
    for rule in profile["syscalls"]:
        comparisons = [
            Comparison(it["index"], COMPARE[it["op"]], it["value"], it.get("valueTwo", 0))
            for it in rule.get("args", [])
        ]
        array = (Comparison * len(comparisons))(*comparisons)
        wanted = action(rule["action"], rule.get("errnoRet", errno.EPERM))
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            # -1 is a name that this libseccomp does not know, others below are of another machine.
            if number < 0:
                continue
            code = library.seccomp_rule_add_array(context, wanted, number, len(array), array)
            assert code == 0, f"{name}: {code}"
    assert ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert library.seccomp_load(context) == 0
    os.execv(program[0], program)


main()
