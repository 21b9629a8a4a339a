"""Generates texts in five languages, with what is to be found in them. The same seed gives the same texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.redaction.values import HARD, OTHERS, password, value_of
from shared.domain.redaction_rules import RedactionKind

LANGUAGES = ("en", "de", "fr", "es", "ja")
# The name of the place of a value in a sentence.
_PLACE = "{}"


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, and what is to be found in it: kinds and values."""

    language: str
    text: str
    values: Sequence[tuple[RedactionKind, str]]


CARD, IBAN, EMAIL, PHONE, SECRET = RedactionKind
_SENTENCES: Mapping[str, Mapping[RedactionKind, Sequence[str]]] = {
    "en": {
        CARD: ("My card number is {}, valid until 12/29.", "Please charge {} for the order.", "Card: {} CVV 123"),
        IBAN: ("Send the refund to {} please.", "IBAN {}", "The account {} was closed."),
        EMAIL: ("You can reach me at {}.", "Contact: <{}>", "I wrote to {}, but nobody answered."),
        PHONE: ("Call me on {} tonight.", "Phone: {}", "My mobile is {}, after six."),
        SECRET: ("It fails with the key {} since today.", "export TOKEN={}", "curl -H 'Authorization: Bearer {}'"),
    },
    "de": {
        CARD: ("Meine Kartennummer lautet {}, gültig bis 12/29.", "Bitte belasten Sie {}.", "Karte: {} Prüfziffer 123"),
        IBAN: ("Bitte überweisen Sie auf {}.", "IBAN {}", "Das Konto {} wurde gelöscht."),
        EMAIL: ("Sie erreichen mich unter {}.", "Kontakt: <{}>", "Ich habe an {} geschrieben."),
        PHONE: ("Rufen Sie mich unter {} an.", "Tel.: {}", "Meine Handynummer ist {}, ab 18 Uhr."),
        SECRET: ("Mit dem Schlüssel {} geht es nicht.", "export TOKEN={}", "Authorization: Bearer {}"),
    },
    "fr": {
        CARD: ("Mon numéro de carte est {}, valable jusqu'à 12/29.", "Merci de débiter {}.", "Carte : {} code 123"),
        IBAN: ("Virez la somme sur {} svp.", "IBAN {}", "Le compte {} est clôturé."),
        EMAIL: ("Écrivez-moi à {}.", "Contact : <{}>", "J'ai écrit à {} sans réponse."),
        PHONE: ("Appelez-moi au {} ce soir.", "Tél. : {}", "Mon portable est le {}, après 18 h."),
        SECRET: ("La clé {} ne marche plus.", "export TOKEN={}", "Authorization: Bearer {}"),
    },
    "es": {
        CARD: ("Mi tarjeta es {}, válida hasta 12/29.", "Cargue el pedido en {} por favor.", "Tarjeta: {} CVV 123"),
        IBAN: ("Envíe el reembolso a {}.", "IBAN {}", "La cuenta {} está cerrada."),
        EMAIL: ("Puede escribirme a {}.", "Contacto: <{}>", "Escribí a {} y nadie respondió."),
        PHONE: ("Llámeme al {} esta noche.", "Teléfono: {}", "Mi móvil es {}, después de las seis."),
        SECRET: ("Con la clave {} falla desde hoy.", "export TOKEN={}", "Authorization: Bearer {}"),
    },
    "ja": {
        CARD: ("カード番号は {} です。", "{} に請求してください。", "カード: {} 有効期限 12/29"),
        IBAN: ("返金先は {} です。", "IBAN {}", "口座 {} は解約しました。"),
        EMAIL: ("連絡先は {} です。", "メール: <{}>", "{} に送りましたが返事がありません。"),
        PHONE: ("電話番号は {} です。", "電話: {}", "携帯は {} です。六時以降にお願いします。"),
        SECRET: ("キー {} が使えません。", "export TOKEN={}", "Authorization: Bearer {}"),
    },
}
_PASSWORDS: Mapping[str, str] = {
    "en": "My password is {} by the way.",
    "de": "Mein Passwort ist {} übrigens.",
    "fr": "Le mot de passe est {} au fait.",
    "es": "La contraseña es {} por cierto.",
    "ja": "パスワードは{} です。",
}
_FILLERS: Mapping[str, Sequence[str]] = {
    "en": (
        "I ordered two pairs of shoes last week.", "The parcel {} has not arrived.", "See {} for details.",
        "It was delivered on {} according to the page.", "The measured value was {}.", "Could you summarize this?",
    ),
    "de": (
        "Ich habe letzte Woche zwei Paar Schuhe bestellt.", "Das Paket {} ist nicht angekommen.", "Siehe {}.",
        "Laut Seite wurde es am {} zugestellt.", "Der Messwert war {}.", "Können Sie das zusammenfassen?",
    ),
    "fr": (
        "J'ai commandé deux paires de chaussures.", "Le colis {} n'est pas arrivé.", "Voir {} pour les détails.",
        "Il aurait été livré le {} d'après la page.", "La valeur mesurée était {}.", "Pouvez-vous résumer ?",
    ),
    "es": (
        "Pedí dos pares de zapatos la semana pasada.", "El paquete {} no ha llegado.", "Véase {}.",
        "Según la página se entregó el {}.", "El valor medido fue {}.", "¿Puede resumirlo?",
    ),
    "ja": (
        "先週、靴を二足注文しました。", "荷物 {} が届きません。", "詳細は {} を見てください。",
        "ページによると {} に配達されました。", "測定値は {} でした。", "要約してください。",
    ),
}  # fmt: skip


def generate(count: int, seed: int = 1, *, hard: float = HARD) -> Iterator[LabelledText]:
    """Yield texts, as many in each language. A third has nothing that is to be found.

    `hard`: the share of the values that are written in a way that is hard to find.
    """
    random = Random(seed)
    for number in range(count):
        language = LANGUAGES[number % len(LANGUAGES)]
        sentences: list[str] = []
        values: list[tuple[RedactionKind, str]] = []
        for _ in range(random.choice((0, 1, 1, 2, 3, 0))):
            kind = random.choice(tuple(RedactionKind))
            if kind is SECRET and random.random() < 0.2:
                sentence, value = _PASSWORDS[language], password(random)
            else:
                sentence, value = random.choice(_SENTENCES[language][kind]), value_of(random, kind, language, hard)
            values.append((kind, value))
            sentences.append(sentence.replace(_PLACE, value))
        fillers = random.choices(_FILLERS[language], k=random.randint(1, 4))
        sentences += [filler.replace(_PLACE, random.choice(OTHERS)(random)) for filler in fillers]
        random.shuffle(sentences)
        yield LabelledText(language, random.choice((" ", "\n")).join(sentences), values)
