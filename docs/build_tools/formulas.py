"""The formulas of docs/theory.md in LaTeX, by number; the site renders them as MathML, without any script.

tests/docs holds this table and the page to the same numbers.
"""

FORMULAS: dict[str, str] = {
    "1.1": r"\log \mathrm{vMF}(z;\mu,\kappa) = \kappa\,\mu\cdot z + \log C_d(\kappa), \quad "
    r"\log C_d(\kappa) = \left(\tfrac{d}{2}-1\right)\log\kappa - \tfrac{d}{2}\log 2\pi - \log I_{d/2-1}(\kappa)",
    "1.2": r"\mathbb{E}[z] = A\mu, \quad "
    r"\mathbb{E}[z z^{\top}] = \frac{A}{\kappa} I + \left(1 - \frac{dA}{\kappa}\right)\mu\mu^{\top}",
    "1.3": r"H = -\log C_d(\kappa) - \kappa A",
    "1.4": r"\mathrm{KL} = \log C_d(\kappa_1) - \log C_d(\kappa_2) + "
    r"A_d(\kappa_1)\,(\kappa_1 - \kappa_2\,\mu\cdot\mu')",
    "1.5": r"\mathrm{KL} = \kappa A\,(1 - \mu\cdot\mu') = \frac{\kappa A\,\delta^2}{2}",
    "1.6": r"\kappa \to 0: \quad \log C_d = \log\Gamma\left(\tfrac{d}{2}\right) - \log 2 - \tfrac{d}{2}\log\pi",
    "2.1": r"\min\; \beta\, I(X;Z|Y) - I(Y;Z)",
    "2.2": r"\mathbb{E}\left[\log e(z|x) - \log b(z|y)\right], \quad z \sim e(z|x)",
    "2.3": r"I(Y;Z) \ge \log K + \mathbb{E}\left[\log \frac{b(z|y)}{\sum_{k=1}^{K} b(z|y_k)}\right]",
    "2.4": r"\log C_d(\kappa_e) - \log C_d(\kappa_b) + A_d(\kappa_e)\,(\kappa_e - \kappa_b)",
    "2.5": r"\beta = 0,\; z = \mu: \quad \text{temperature} = \frac{1}{\kappa_b}",
    "3.1": r"L \ge \frac{\sqrt{\mathrm{KL}}}{\Delta} = \sqrt{\frac{\kappa A}{2}}\,\frac{\delta}{\Delta}",
    "3.2": r"L \ge \frac{\mathrm{KL}}{\Delta}",
    "3.3": r"L \ge \frac{\sqrt{\mathbb{E}[r^2]}}{\Delta}, \quad "
    r"\mathbb{E}[r^2] = 2\,\mathrm{KL} + \frac{A_{d+2}(\kappa)}{A_d(\kappa)}\,\mathrm{KL}^2",
    "3.4": r"L \ge \frac{\kappa\,\delta}{\Delta}, \quad z = \pm\frac{\mu - \mu'}{\delta}",
    "3.5": r"\mathrm{Lip}(\mu) \ge \frac{\delta}{\Delta}",
    "3.6": r"\left|\mathrm{KL}(e(x)\|b(y)) - \mathrm{KL}(e(x)\|b(y'))\right| \le "
    r"A(\kappa_e)\,\kappa_b\,\|\mu(y) - \mu(y')\|",
    "3.7": r"\Delta < 10^{-5}: \quad \frac{\delta}{\Delta} \text{ from } \|Jv\|",
    "3.8": r"\frac{\eta}{\delta} \le 10^{-3}, \quad \eta \approx 10^{-7}\sqrt{\text{depth}}",
    "4.1": r"J = \frac{d\mu}{dx} = \left(I - \mu\mu^{\top}\right)\frac{1}{\|h\|}\frac{dh}{dx}",
    "4.2": r"F = \kappa A\, J^{\top} J",
    "4.3": r"\sqrt{\tfrac{\kappa A}{2}}\,\|Jv\|, \quad \sqrt{\kappa A}\,\|Jv\| = \sqrt{v^{\top}Fv}, \quad "
    r"\kappa\,\|Jv\|, \quad \|Jv\|",
    "4.4": r"\frac{\delta}{\Delta} \le \sup_{t \in [0,1]} \sigma_{\max}\left(J(x + t(x'-x))\right)",
    "4.5": r"\max_{u, v \in B(x)} \frac{\|\mu(u) - \mu(v)\|}{\|u - v\|} \le \sup_{u \in B(x)} \sigma_{\max}(J(u))",
    "4.6": r"G(y) = \exp\left(-\left(\frac{a - y}{b}\right)^{c}\right), \quad y < a",
    "4.7": r"\|J^{\top}u - \sigma v\| \le 2\,\mathrm{rtol}\,\sigma",
    "4.8": r"\frac{m F}{q_{97.5\%}(\chi^2_m)} \le \|J\|_F^2 \le \frac{m F}{q_{2.5\%}(\chi^2_m)}",
    "5.1": r"\mathrm{Lip}(\mu) \le \frac{U}{\|h(x)\| - U\varepsilon}",
    "5.2": r"\|K\| \le c_n \max_{\omega} \sigma_{\max}\left(\hat{K}(\omega)\right)",
    "5.3": r"\frac{\delta}{\Delta} \le \text{searched} \le \mathrm{Lip}(\mu) \le \text{certified}",
    "5.4": r"J(x') = \bar{J} + G E (I - M E)^{-1} B, \quad E = \mathrm{diag}(e),\; |e| \le \tfrac{1}{2}",
    "5.5": r"\mathrm{Lip}(\mu) \le \frac{U_P + \min(1, U\varepsilon/\|h\|)\, U}{\|h\| - U\varepsilon}",
    "5.6": r"\varphi'(z') \in c \pm w, \quad |z' - z| \le \varepsilon\rho, \quad w \to 0 \text{ as } \varepsilon \to 0",
    "5.7": r"\text{not tracked} \neq \text{constant}",
    "5.8": r"\|x' - x\| \le \min\left(\varepsilon, \frac{m(x)}{L}\right): \quad \text{no change of class}",
}
