"""Words that indicate how complex a task is, in several languages.

The lists are short on purpose: a task in another language is judged by its length and structure.
"""

from __future__ import annotations

import re

from api.routing.scripts import UNSPACED

_WORD = re.compile(rf"[^\W\d_{UNSPACED}][^\W_{UNSPACED}]*[+#]*")


class Terms:
    """A case-folded text, and its different words and characters.

    Most phrases begin with a character that the text does not have, and need not be searched for.
    """

    def __init__(self, text: str) -> None:
        self.text = text.casefold()
        self.words = frozenset(_WORD.findall(self.text))
        self.characters = frozenset(self.text)


class Vocabulary:
    """Words, and phrases that are found anywhere in a text. All are case-folded."""

    def __init__(self, words: str, phrases: str = "") -> None:
        """Read `words`, separated by spaces, and `phrases`, separated by `|`.

        A word stands for all words that begin with it, unless a `$` follows.
        """
        listed = words.split()
        self._whole = frozenset(word[:-1] for word in listed if word.endswith("$"))
        self._stems = frozenset(word for word in listed if not word.endswith("$"))
        self._lengths = sorted({len(stem) for stem in self._stems})
        self._starts = frozenset(stem[: self._lengths[0]] for stem in self._stems)
        self._phrases = tuple(phrases.split("|")) if phrases else ()

    def count(self, task: Terms, limit: int = 3) -> int:
        """The number of different words and phrases that a task has, at most `limit`."""
        found = task.words & self._whole
        shortest = self._lengths[0]
        for word in task.words:
            if word[:shortest] in self._starts:
                found |= {start for length in self._lengths if (start := word[:length]) in self._stems}
                if len(found) >= limit:
                    return limit
        found |= {phrase for phrase in self._phrases if phrase[0] in task.characters and phrase in task.text}
        return min(limit, len(found))


# Tasks that need reasoning over several steps, expert knowledge, or a long and consistent answer.
DEMANDING = Vocabulary(
    "analys analyz anális analis analiz prove proven$ beweis démontr dimostr demuestr demonstre derive$ refactor"
    " debug optimiz optimise$ optimising$ optimier optimal$ evaluat critique kritisier investigat diagnos deduce"
    " essay aufsatz dissert strategy$ strategie estrategia bewert begründ évalu udowodn"
    " анализ проанализ докаж доказат оптимиз исслед",
    "step by step|step-by-step|schritt für schritt|paso a paso|passo a passo|étape par étape|passo dopo passo"
    "|krok po kroku|по шагам|пошагов|adım adım|trade-off|tradeoff|root cause|chain of thought|think carefully"
    "|think hard|in depth|in-depth|in detail|en détail|en detalle|em detalhe|in dettaglio|im detail|ausführlich"
    "|подробно|design a|entwirf|entwerfe|diseña|conçois|progetta"
    "|逐步|一步一步|分析|证明|證明|推导|推導|优化|優化|设计|設計|论文|論文|详细|詳細"
    "|ステップ|証明|最適化|단계별|분석|증명|최적화|설계|자세히"
    "|خطوة بخطوة|حلل|تحليل|أثبت|برهن|صمم|चरण दर चरण|विश्लेषण|सिद्ध|विस्तार",
)

# Tasks that are more than a question with a short answer.
SUBSTANTIAL = Vocabulary(
    "summar résum resum riassum zusammenf fasse$ streszcz özet explain explan erklär expliqu explic spieg wyjaśn"
    " açıkla describ beschreib décri compar vergleich porówn rewrite rephras paraphras umschreib reescrib réécri"
    " outline draft entwurf überprüf plan$ plane$ interpret discuss diskut elaborat recommend empfehl"
    " резюм обобщ объясн опиши перепиш обсуд сравни",
    "pros and cons|vor- und nachteile|pour et contre|ventajas y desventajas|tl;dr|tldr"
    "|总结|總結|摘要|概括|解释|解釋|说明|說明|描述|改写|改寫|比较|比較|要約|まとめ|説明|書き直|요약|설명|정리|비교"
    "|لخص|تلخيص|اشرح|شرح|قارن|सारांश|संक्षेप|समझा|तुलना",
)

# A task to write code has one of these words, and one of the verbs below.
CODE = Vocabulary(
    "code codice código coder program programm función funções função function fonction funktion funzione script"
    " skript algorithm algorit algoritm python javascript typescript java$ rust$ golang kotlin swift$ c++$ c#$ php$"
    " ruby$ sql$ query queries regex class$ klasse api$ apis$ endpoint unittest pytest dockerfile kubernetes"
    " terraform html css$ react$ kod kodu код програм функци скрипт запрос алгоритм",
    "代码|代碼|函数|函數|程序|程式|脚本|腳本|算法|演算法|コード|関数|プログラム|アルゴリズム|코드|함수|프로그램|알고리즘"
    "|كود|دالة|برنامج|خوارزمية|कोड|फ़ंक्शन|प्रोग्राम",
)
MAKING = Vocabulary(
    "write$ writing$ implement create creat build develop$ generate port$ convert migrat fix$ schreib erstell"
    " programmier entwick écri ecri cré développ corrig escrib escreva crie$ crea desarroll desenvolv scriv svilupp"
    " napisz stwórz yaz$ напиши написать создай исправ реализ",
    "写|寫|编写|編寫|实现|實現|修复|書いて|作って|作成|実装|작성|만들|구현|اكتب|أنشئ|लिख|बना",
)
