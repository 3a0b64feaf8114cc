"""The codebooks of IQ1, IQ2 and IQ3: which groups of weights an index can name, and how kernels read them.

A codebook is a choice among all groups of 8 (or 4) numbers out of a few levels, in ascending order: the first number counts
least. Where ``even`` is set, only groups are numbered whose levels' places (0, 1, 2 ...) add up to an even number. So a codebook
is kept as one bit for each of these groups, the first in the top bit of a byte, in base 85. The choices are ggml's
(github.com/ggml-org/ggml, ``ggml-common.h``: ``iq2xxs_grid`` and so on), the same for all models.

Compiled code looks entries up in a table of 32-bit words that is part of the code itself: code is cached on disk, so it may
hold no address of this process. A word names the 8 numbers by their level's place, in nibbles: byte c holds number c in its low
half, number c + 4 in its high half. The upper bits of a nibble are free for a sign, so that a table of 16 bytes turns nibbles
into weights with their signs.
"""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # imports llvmlite
    from gumba.quants._registers import WeightTable
    from gumba.simd.isa import Isa
    from gumba.simd.value import Simd, Value


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """Groups of ``width`` numbers out of ``levels``; ``chosen``: which of all groups, see above."""

    name: str
    levels: tuple[int, ...]
    width: int
    even: bool
    chosen: str

    @functools.cached_property
    def places(self) -> NDArray[np.uint32]:
        """For each entry the places of its levels: uint32 [entries, width]."""
        n = len(self.levels)
        every = np.arange(n**self.width)[:, None] // n ** np.arange(self.width) % n
        if self.even:
            every = every[every.sum(axis=1) % 2 == 0]
        bits = np.unpackbits(np.frombuffer(base64.b85decode(self.chosen), np.uint8), count=len(every))
        places: NDArray[np.uint32] = every[bits == 1].astype(np.uint32)
        return places

    @functools.cached_property
    def values(self) -> NDArray[np.float32]:
        """The entries: float32 [entries, width]."""
        return np.array(self.levels, np.float32)[self.places]

    @functools.cached_property
    def words(self) -> list[int]:
        """For each entry the word that names its levels."""
        shifts = np.array([0, 8, 16, 24, 4, 12, 20, 28][: self.width], np.uint32)
        named: list[int] = (self.places << shifts).sum(axis=1).tolist()
        return named

    def address(self, s: Simd) -> Value:
        """The address of ``words`` in compiled code."""
        return s.table(self.name, self.words)

    def look_up(self, s: Simd, isa: Isa, index: Value) -> Value:
        """The words of the entries that the lanes of ``index`` name."""
        return isa.gather(s, self.address(s), index)


def spread_signs(signs: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The signs of 32 weights, uint8 [..., 4] with bit i for weight i of each 8, as ``sign_marks`` reads them, uint32 [...].

    Weight 8 l + i has bit 8 (i % 4) + 4 (i / 4) + l: with those of the other groups of 8, the signs of the weights in one byte
    of the registers are in that byte.
    """
    i = np.arange(8, dtype=np.uint32)
    of_byte = (np.arange(256, dtype=np.uint32)[:, None] >> i & 1) << (i % 4 * 8 + i // 4 * 4)
    spread = of_byte.sum(axis=1, dtype=np.uint32)[signs]
    words: NDArray[np.uint32] = np.bitwise_or.reduce(spread << np.arange(4, dtype=np.uint32), axis=-1)
    return words


def complete_signs(word: Value) -> Value:
    """The signs of 32 weights from the lower 28 bits of ``word``: the last weight of each 8 makes their number even."""
    known = word & 0x0FFFFFFF
    parity = known ^ (known >> 16)
    parity = parity ^ (parity >> 8)
    parity = parity ^ (parity >> 4)
    return known | (parity << 28)


def sign_marks(signs: Value, group: int) -> Value:
    """The signs of weights 8 ``group`` to 8 ``group`` + 7, each in the top bit of the nibble of its weight."""
    return (signs << (3 - group)) & -0x77777778


def signed_levels(levels: tuple[int, ...]) -> list[int]:
    """The weights that nibbles name: the levels, and from 8 on their negatives."""
    half = [*levels, *[0] * (8 - len(levels))]
    return [*half, *(-level for level in half)]


def two_registers(s: Simd, isa: Isa, table: WeightTable, nibbles: Value) -> list[Value]:
    """The weights of 8 columns from their nibbles: registers of columns 0 to 3 and 4 to 7."""
    from gumba.simd.value import I8

    halves = (nibbles & 0x0F0F0F0F, (nibbles >> 4) & 0x0F0F0F0F)
    return [isa.lookup(s, table.entries, half.bits(I8, 4 * isa.lanes)) for half in halves]


def two_entries(
    s: Simd, isa: Isa, table: WeightTable, codebook: Codebook, indexes: list[Value], marks: Value
) -> list[Value]:
    """As ``two_registers``, from two entries of 4; ``marks``: their signs, see ``sign_marks``."""
    first, second = (codebook.look_up(s, isa, index) for index in indexes)
    return two_registers(s, isa, table, first | (second << 4) | marks)


def half_scales(d: Value, scales: Value, group: int) -> tuple[Value, Value]:
    """The scales d * (0.5 + s) / 4 of columns 0 to 15 and 16 to 31 from byte ``group`` of ``scales``: two s of 4 bits."""
    from gumba.simd.value import F32

    low, high = (((scales >> (8 * group + 4 * half)) & 15).to(F32) for half in range(2))
    return d * (low + 0.5) * 0.25, d * (high + 0.5) * 0.25


_IQ2_LEVELS = (8, 25, 43)

#: 8 times the weights that the nibbles of IQ1's entries name: places of the levels, and in bit 2 the sign of the shift.
IQ1_WEIGHTS = (-7, 1, 9, 0, -9, -1, 7)

IQ2_XXS = Codebook(
    name="iq2_xxs",
    levels=_IQ2_LEVELS,
    width=8,
    even=True,
    chosen=(
        "{%<9j1Z4sM1Q1{l00aOs8K8ziG!P&RAOiq^0RWakW&l7006+i$1Rwwa00u%J5K07s0T6%y0E7Sl0zp9lKmY;&0ssL500000$OHfo0H6Q>00;"
        "m85C8yV0Dz1D00JNY05AXm000>PfdBvy06-7`000005CH@L00aO40000000;m810|9uWC8&I1W*AG0T6%zAb<cMAOs))004jh0001F0)PMjK"
        "mY=S0000$06--$00e*t06+i$fB*mh5C8xG02ly(00004004jh1S9|i0000G0000$00000kO%;P0RR9H000310ssJ@000001^@sA000000000"
        "0fB*mh000000000002u&40RRLLKmY&$KmY&$22dan00aO800IC&5C{MP000000Du4h000O80000;Bme*i0RR9H0001h002M`fB*mh00;m800"
        "000000000ssIA00000000001ONg6KmdRM000C4000001ONa400000000000000006+i$KmY&$000000000"
    ),
)

IQ2_XS = Codebook(
    name="iq2_xs",
    levels=_IQ2_LEVELS,
    width=8,
    even=True,
    chosen=(
        "|NH%(*njicEP#6<ln8)7+3towJ&?#m02u<n0RSJ$WP$-4fItBt2n2ut0*CuOk;n(K832O=pb!WE1KACNKmm{l000350Du4h%mfew0H6Q>KmY"
        "&$5C8!GA&>|JG65hU03Zke1OQn9fB*mx073u)2nYZG04an3fFM8s00IaAf&c(m1O1=MWCPg@fKU;b7ytkP?S?=gfXE~O01$`)AOHYl0*HVBL"
        "I98u01yBG002Fb$OHfxK)?V15C9+m033usApnU000AHX0ssO4L=X`G0DuA*00000000mHkO(3O0{{R30000WKmdS&000001Ok8n0ssI2001B"
        "W00;m81ONa41ONgc03OKX0{}jNLO=ir1ONemmT({t5Ci}S000mK004jjKtKp!1V8`)0000$03<@l1PBNKfFJ;X000040RT_{k^lez0ssJD00"
        "4jh00004002M$2mk;8AOIi$4TL}d0Du4iAOIGCAOL_s01yBH00000000000RTV{&;S4uKmY&?000aC0Dyo"
    ),
)

IQ2_S = Codebook(
    name="iq2_s",
    levels=_IQ2_LEVELS,
    width=8,
    even=True,
    chosen=(
        "|NH&^%Kx+9Z036-^a`Rs-~Z>^KlcA;vL8UULm(dd|FVc2^jjei2x7tj0SEiN{_AJ|-|Y4SX_UZZ1K)4<dm;YMWHJG4hCm<z`$w`E0QN&5AOs"
        "`=1ONbg>zqiSbCJx3Kq3oB0Ki{t_Cp{R$Ycrt41hpD0199-01ys900062K>!381OMOtWwYPU_In|oOJpzs|M&YnkpE}0IRN%UAP@p?v)KfId"
        "m)er5HbM(002Gy|7Wlt?Dj(-7RY1<01x(iA&?JbG64VvK%f8s2eKIufCC^900064000mL-pgbX0qllAARtHt2mlDSLm&_UWC9={KtKQh03b2"
        "|03Zk;0RR91002M$0Up|CqL>Z#djXId;4%OJ2l_pb$Op0+0Eh!1FaQ7om<)gb5r7B*0000$3=jz4C$bp;rUN1X0AvCH00Da;kO&Ym0RR9BAO"
        "IjB02u;+001xm3IG5A0000G3ZilV07w8J1ONg-U;tPPAP@iu5&{4K00000KmY&`5C8xO000mK02pWh0sw#"
    ),
)

IQ3_XXS = Codebook(
    name="iq3_xxs",
    levels=(4, 12, 20, 28, 36, 44, 52, 62),
    width=4,
    even=True,
    chosen=(
        "?Z`j|%&dY4=*<ZNoFD)Q1OXuikOTw(00ICY3jjcX%+449$iM&q%!mL4z=#kKpa2K}0H6>EAOHXW06>5M%-BEx?1%tZ$-#mEiU0r#00IO6KoE"
        "ce00000!2lotjKByaz=$va$RGp+2m}BC00<BSkU#<e0s#O(00aPlAp->f000020D*vz5C9+mAOHv;03bjJ00000EC>Jq1OR{tkPrd@0t5gAK"
        "mY^)2v7h7KnMT;000O803bjB03a|R0Du610RR9X00{s9001BWAOHja00aO4K!5-McmxCh01$ux1OOxef&>770Dyo1z#sqs00;m800000"
    ),
)

IQ3_S = Codebook(
    name="iq3_s",
    levels=(1, 3, 5, 7, 9, 11, 13, 15),
    width=4,
    even=False,
    chosen=(
        "<?6%`rBI+r=){pk2mnMN#gasbB~Sp65JaF-2%rH(fDuR_kU#){C;*}mMF0X20#E=z03ZNBr~sl60Ehqp=+&S~017}L(uhEiK%fAEfF+0^kOY"
        "7rNsvK^KmZ_s6es{tB8UJ0K#)M706+i$004;q3IG5AP@q5rKmZ_s)v8gTRG<Nrpphg<AV2^BNdQoRKoI~)q(CT8Ab<h@K>&~>KmY(F2tXhKf"
        "DizHp#VSt00ck)1V93S5P$#xAXOk#DL@cFR0vQ2fB=9ZfFOV<0Du4hK!{O*Q3L=G5JDh803e6}K%fL52m$~Q00IC2KmY&$PynC=00000h#-j"
        "|K!5;%Ay6QM5JUg~P=r7bfB_(Y2vDFz00000pa2K~fB*nM1pq(*001BW01yBO004jh0E7U55I_I`Ac!CUi68<9R3Jbg0000WfItv}01yBGA%"
        "Fn@2tWi7NC1E!0ssI203ZSY08jt`00000AOHXWC;%V;0000008{`_004jhfB=C2000O803ZMeAOs+QfCxYUfB*mh000C45C9+mkN^M(004jh"
        "1ONa4fB*mh08jt`00000i2$GifCwM}AV3HJ6aWAKNP<9s06+i$AOHX)01yBGL=b=g0Du4h001BWAOHXWAOHYB00000fB*mh00000"
    ),
)

IQ1 = Codebook(
    name="iq1",
    levels=(-1, 0, 1),
    width=8,
    even=False,
    chosen=(
        "s-!5P1wcZI5Tc9~VFXb{SP)bMD4_}{K?EYAq^O_;KtTi%7yuAK1;A7V5#3c#302SlL;z4#F+l|o0*Vl#gb@J>C_;)5Q4A0n1rPyL5Tb-Ap#%"
        "~_st}@pG(!ahQDgvABo$Rf5J&Y85EK*u1wcX+RTKmj0R&Ll5S?8W1XFd9MRiqNKG#=W-9d02L|s$Ma7jQ!07L{8QC(0$Ko9^_QU^ucL<H1D0"
        "D%I5RZ$cWM1Uxv3aCK@kfMYtp#=~?#1&iwAwdKxLW&SY1Q4kTC_q#Y9Th<V1rk665J5#2ML-nQR1l#A5J3zOq5=S-geai}078lYqJWe^08v3"
        "y5QPjVpb98K6cD0>D4_&EKm=7(00c;lQFRm*U4>N@4gf(=5I__}Kp_A@01^QOR}EBELj=)XL|0qo(b0AlNext0PSH^!FjNE*Ap#UpR1j4J6E"
        "j6bMfF()7ZpGNKmb$~5dZ`M1<^%C6kP=YK}=9xeH~qY*F^=?MG#R?6jwz6g-k#&UnN(2_tX`1v3-8mU+@0?XTDu~mfz(6{bXNAmxobA2vvP>"
        "Ayp7f70^L-|6L@P!2uvfG!{=4P$kp=KvWPAM^#7wKtWVcWdxH!kqJQ*07U>X0muMB5D)-1QB_slKxKVV1yeu)*6DN$O_vBk2y|6@6sU`(AOK"
        "K708v2%5P*dQK~<bxL`)$CkO3F~QAI{TfhZ!10HTC7K?*2BiV#%<6jk9+NK_D_geaf|5JHL&qJRWI1p-Ax01*HXMG#g|b{$n!0RRM0K}Qorg"
        "b*SMC_;*mQ3R-=3MgSv5LHxE0RT`!iV&iN6#xn-LW&Sa1Q9_{7(rAJRYg@%4bebQR8<5NK><}z6c7{ul@UNh1%1#I9S~7n(oJ>$T_qoNRRl^"
        "D7HtI#X8}+^6c9vKMgas+Kvh-LRaZro1w{}L2m}RDL;yi>0HTB_p#@L^iV&iNm0$o;RX`A>00^)mC_xkuqJ$`*01!bzHBSTp0031`6i{6RS4"
        "BVoK@yM@mnZ;;(xQq0qJR}Z3MfK~5D_F05fo4Y5CEcpD4+#E0*Vl#fB"
    ),
)
