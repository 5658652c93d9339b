// Elements of half types that are not finite: those whose bits of the exponent are all ones.

constexpr int PART = 8;  // elements of 16 bytes

DEVICE unsigned exponent_bits(bfloat16) { return 0x7f80; }
DEVICE unsigned exponent_bits(float16) { return 0x7c00; }

// Whether 16 bytes hold one. Exponents of ones only, and no other, carry into the sign when one is added.
DEVICE bool holds_unfinite(const Words& words) {
    unsigned low = exponent_bits(Element{}), bits = low | low << 16, ones = bits & ~(bits << 1);
    unsigned found = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) found |= (words.words[i] & bits) + ones;
    return (found & 0x80008000u) != 0;
}

// A word of two elements with those that are not finite made zero.
DEVICE unsigned finite_word(unsigned word) {
    unsigned low = exponent_bits(Element{});
    if ((word & low) == low) word &= 0xffff0000u;
    return (word >> 16 & low) == low ? word & 0xffffu : word;
}
