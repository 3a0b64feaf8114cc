"""A page of difficult text: pre-tokenizers that split all of it alike are considered equal."""

PROBE = (
    "Hello, World! It's a test: I'M, you'RE, they'll, we've, he'd, she'S don't it'sx we'LLx do'nt.  Two spaces,   thr"
    "ee,    five\ttab\t\ttabs \t mixed\r\n\r\n\n\n\nnewlines   \n   trailing   \n"
    '\u2028x\xa0y\u3000z\x0b\x0c\x85w\ndef f(x: int) -> str:\n    if x != 0 and y[1:-1] == "a\'b":\n'
    '        return f"{x:>10}"\n\treturn None;;;\n\nx   7  42   \xbd\n'
    "0 1 12 123 1234 12345 123456 1234567 x12345 12345x 12,345.678 3.14159 1e-10 0x1F \xbd1234 \xb2 \u0661\u0662"
    "\u0663\u0664 \u0967\u0968 \uff14\uff15\uff16\uff17 \u216b \u2460\u2461 1\xb2345\n"
    "camelCase PascalCase HTTPServer XMLHttpRequest iPhone ABCdef abcDEF aBcD x_y_z \u01c5ungla \u1fbcx\n"
    "\xdcn\xefc\xf6d\xe9 na\xefve cafe\u0301 Z\u0351\u036b\u0343\u032a Stra\xdfe \u0130stanbul \ufb01 \u2126 \u212a\n"
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u6f22\u5b57\u3068\u30ab\u30ca\u3002\u3072\u3089\u304c"
    "\u306a\u30fb\u30ab\u30bf\u30ab\u30ca\uff01 \u4e2d\u6587abc\u6d4b\u8bd5\uff0c\u6807\u70b9\u7b26\u53f7\u3002\u4e2d"
    "\u6587's \ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8 \u3131\u3132 \u3105\u3106 \u0e44\u0e17\u0e22\u0e20\u0e32\u0e29"
    "\u0e32\u0e17\u0e35\u0e48\u0e14\u0e35 \u9fff\u3400\U00020000\u3007\u2e80\uff76\uff85\n"
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0420 \u041c\u0418\u0440! \u0395\u03bb\u03bb\u03b7\u03bd"
    "\u03b9\u03ba\u03ac \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627\u060c \u0643\u064a\u0641\u061f \u0939"
    "\u093f\u0928\u094d\u0926\u0940 \u092a\u093e\u0920\u0964 \u09ac\u09be\u0982\u09b2\u09be \u06d4\n"
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f 1\ufe0f\u20e3 \u2192"
    "\u2190 \u2200x\u2208\u211d: \u2211\u221e \u20ac\xa3\xa5 $100 <=> ^~|` \xabquotes\xbb \u201ccurly\u201d \u2018sin"
    "gle\u2019 \u2014 \u2013 \u2026\nhttp://example.com/path?query=1&other=%20#frag user@example.org C:\\Windows /usr"
    "/bin `code` **bold** __init__ --flag=v\n!!!\n\n  ...\r\n//\n/ ???/\n"
    " (a) |b| a b c d e  f \xe9 \xe8 g1 h\n#include <a.h>\n$x@y [INST] <sentinel:12> IMGIMGABZ \x00\x01\x1c\x7f\u0378"
    "\ue000\U000e0001\u200b\ufeff'tis o'clock rock'n'roll ''' '' \"'s\" 's 'S 't 'LL    \t  \n"
    "    " + " " * 530 + "x" * 40 + " " * 9 + "=" * 20 + "   "
)
